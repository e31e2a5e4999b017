"""What policies decide, and what they refuse."""

import numpy as np
import pytest

import prunus as pr
from prunus.pruning.policies import as_policy, decide, foreseen, largest

NORMS = np.array([[0.0, 1.0, 3.0, 2.0], [5.0, np.nan, 0.5, 0.5]], np.float32)


def test_threshold_keeps_what_is_above_and_nan():
    live = decide(pr.Threshold(0.5), NORMS)
    assert live.tolist() == [[False, True, True, True], [True, True, False, False]]


def test_threshold_compares_in_double_precision():
    # 0.1 as a float32 is above the double 0.1, and 1e39 is not infinite.
    assert decide(pr.Threshold(0.1), np.full((1, 1), 0.1, np.float32)).all()
    assert decide(pr.Threshold(1e39), np.full((1, 1), np.inf, np.float32)).all()
    assert decide(pr.Threshold(0.0), np.full((1, 1), 5e-324)).all()


@pytest.mark.parametrize("tau", [np.nan, np.inf, -np.inf, -1, 10**400])
def test_threshold_refuses(tau):
    with pytest.raises(ValueError, match="tau must be finite"):
        pr.Threshold(tau)


def test_topk_counts_and_ties_go_to_the_first():
    norms = np.array([[1.0, 2.0, 2.0, 2.0, 0.0]], np.float32)
    assert decide(pr.TopK(2), norms).tolist() == [[False, True, True, False, False]]
    assert decide(pr.TopK(4), norms).tolist() == [[True, True, True, True, False]]
    assert decide(pr.TopK(99), norms).all()


def test_topk_takes_nan_first():
    norms = np.array([[np.inf, 1.0, np.nan, 2.0, np.nan]], np.float32)
    assert decide(pr.TopK(1), norms).tolist() == [[False, False, True, False, False]]
    assert decide(pr.TopK(3), norms).tolist() == [[True, False, True, False, True]]


@pytest.mark.parametrize(
    ("fraction", "of", "count"), [(0.1, 30, 3), (0.1, 31, 4), (0.001, 5, 1), (1.0, 7, 7), (0.7, 10, 7)]
)
def test_topk_rounds_a_fraction_up(fraction, of, count):
    norms = np.arange(of, dtype=np.float32)[None]
    live = decide(pr.TopK(fraction=fraction), norms)
    assert live.sum() == count
    assert live[0, of - count :].all()


def test_topk_fraction_is_of_what_is_visible():
    norms = np.ones((2, 8), np.float32)
    visible = np.zeros((2, 8), bool)
    visible[0, 3:7] = True
    live = decide(pr.TopK(fraction=0.5), norms, visible)
    assert np.flatnonzero(live[0]).tolist() == [3, 4]
    assert not live[1].any()


def test_largest_is_what_a_stable_sort_says():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.integers(0, 6, (3, rng.integers(1, 20))).astype(np.float32)
        wanted = rng.integers(0, values.shape[1] + 1, 3)
        live = largest(values, wanted, None)
        for row, count, got in zip(values, wanted, live, strict=True):
            order = np.argsort(-row, kind="stable")[:count]
            assert np.flatnonzero(got).tolist() == sorted(order.tolist())


@pytest.mark.parametrize(
    "make",
    [
        pr.TopK,
        lambda: pr.TopK(1, 0.5),
        lambda: pr.TopK(0),
        lambda: pr.TopK(fraction=0),
        lambda: pr.TopK(fraction=1.5),
        lambda: pr.TopK(fraction=np.nan),
        lambda: pr.Router(0),
        lambda: pr.Threshold(0, norm="l1"),
        lambda: pr.Threshold(0, rows=0),
    ],
)
def test_bad_numbers(make):
    with pytest.raises(ValueError, match=r"must be|choose|at least|takes|norm"):
        make()


@pytest.mark.parametrize(
    "make", [lambda: pr.TopK(1.5), lambda: pr.TopK(True), lambda: pr.Router("2"), lambda: pr.Fixed([0, 1])]
)
def test_bad_types(make):
    with pytest.raises(TypeError):
        make()


def test_rows_share_a_decision_only_when_asked():
    norms = np.array([[0, 3], [1, 0], [0, 0], [0, 0], [9, 0]], np.float32)
    alone = decide(pr.Threshold(0.5), norms)
    pooled = decide(pr.Threshold(0.5, rows=2), norms)
    assert alone.tolist() == [[False, True], [True, False], [False, False], [False, False], [True, False]]
    assert pooled.tolist() == [[True, True], [True, True], [False, False], [False, False], [True, False]]


def test_router_cannot_choose_more_than_there_are():
    with pytest.raises(ValueError, match="choose 3 of 2"):
        decide(pr.Router(3), np.zeros((1, 2), np.float32))


def test_fixed_is_foreseen_and_must_fit():
    policy = pr.Fixed([True, False, True])
    x = np.zeros((2, 5), np.float32)
    assert foreseen(policy, x, 3).tolist() == [[True, False, True]] * 2
    with pytest.raises(ValueError, match="2 rows of 4 branches"):
        foreseen(policy, x, 4)
    mask = pr.BlockMask(np.array([[True, False], [False, True]]), blocksize=(2, 8), shape=(3, 16))
    live = foreseen(pr.Fixed(mask), np.zeros((3, 5), np.float32), 2)
    assert live.tolist() == [[True, False], [True, False], [False, True]]


def test_functions_and_objects_are_policies():
    class Own:
        norm = "l2"

        def select(self, statistics):
            assert statistics.norm == "l2"
            return statistics.norms > 1

    assert as_policy(None) is None
    assert decide(as_policy(lambda s: s.norms > 2), NORMS).sum() == 2
    assert as_policy(Own()).norm == "l2"
    assert decide(as_policy(Own()), NORMS).sum() == 3
    for wrong in (3, "relu", pr.Threshold):
        with pytest.raises(TypeError):
            as_policy(wrong)


@pytest.mark.parametrize(
    ("attribute", "value", "error", "match"),
    [
        ("rows", 0, ValueError, r"Own\.rows must be at least 1, got 0"),
        ("rows", 1.5, TypeError, r"Own\.rows must be an integer, got float"),
        ("rows", True, TypeError, r"Own\.rows must be an integer, got a bool"),
        ("scope", "kernel", ValueError, r"Own\.scope must be one of tile, row, host, got 'kernel'"),
        ("scope", None, ValueError, r"Own\.scope must be one of"),
        ("norm", "l1", ValueError, r"Own\.norm must be one of max, l2, got 'l1'"),
        ("norm", ["max"], ValueError, r"Own\.norm must be one of"),
    ],
)
def test_attributes_of_a_class_of_ones_own(attribute, value, error, match):
    class Own(pr.Policy):
        def select(self, statistics):
            return np.ones(statistics.norms.shape, bool)

    policy = Own()
    assert as_policy(policy) is policy
    setattr(policy, attribute, value)
    with pytest.raises(error, match=match):
        as_policy(policy)
    if attribute != "scope":
        decider = type("Own", (), {"select": Own.select, attribute: value})()
        with pytest.raises(error, match=match):
            as_policy(decider)


@pytest.mark.parametrize("value", ["0.5", None, [0.5, 1], 1j])
def test_numbers_that_are_none(value):
    with pytest.raises(TypeError, match=r"^tau must be a number, got"):
        pr.Threshold(value)
    if value is not None:
        with pytest.raises(TypeError, match=r"^fraction must be a number, got"):
            pr.TopK(fraction=value)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (np.ma.masked_array([True, False], [True, False]), TypeError, "mask is a masked array"),
        ([0, 1], TypeError, "mask must hold booleans, got dtype int64"),
        (np.ones((2, 2, 2), bool), ValueError, r"mask must have shape \(branches,\) or"),
        (True, ValueError, "mask must have shape"),
        (pr.BlockMask.full((2, 4, 4), 2), ValueError, "mask must have two dimensions"),
        (object(), TypeError, "mask must be an array of booleans or a BlockMask, got object"),
    ],
)
def test_masks_that_are_none(mask, error, match):
    with pytest.raises(error, match=match):
        pr.Fixed(mask)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (lambda s: s.norms, TypeError),
        (lambda s: None, TypeError),
        (lambda s: [[True] * 4] * 2, TypeError),
        (lambda s: np.ones((2, 3), bool), ValueError),
        (lambda s: np.ones(4, bool), ValueError),
    ],
)
def test_nonsense_is_refused(function, error):
    with pytest.raises(error, match="must return"):
        decide(as_policy(function), NORMS)


def test_a_policy_cannot_choose_what_is_invisible():
    visible = np.array([[True, False, True, True], [True, True, True, False]])
    live = decide(as_policy(lambda s: np.ones(s.norms.shape, bool)), NORMS, visible)
    assert (live == visible).all()
