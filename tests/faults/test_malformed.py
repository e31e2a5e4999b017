"""Malformed input to the compiled module, and arrays changed behind a BSR's back: never a crash."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import prunus as pr
from helpers import F32, sparse, values
from prunus import _core

ERRORS = (ValueError, TypeError, OverflowError)
SWAPPED = np.dtype(np.float32).newbyteorder()


def frozen(a):
    a.flags.writeable = False
    return a


def arguments():
    """Arguments of a good call of ``dsd``: (8, 12) in blocks of 4 times (12, 5)."""
    return {
        "data": np.ones((3, 4, 4), np.float32),
        "indices": np.array([0, 2, 1], np.int32),
        "indptr": np.array([0, 2, 3], np.int32),
        "shape": (8, 12),
        "transposed": False,
        "x": np.ones((12, 5), np.float32),
        "out": np.zeros((8, 5), np.float32),
        "bias": None,
        "activation": None,
        "threads": 1,
    }


DATA = {
    "no dimensions": np.float32(1) * np.ones(()),
    "one dimension": np.ones(48, np.float32),
    "two dimensions": np.ones((12, 4), np.float32),
    "four dimensions": np.ones((3, 1, 4, 4), np.float32),
    "F order": np.asfortranarray(np.ones((3, 4, 4), np.float32)),
    "reversed": np.ones((3, 4, 4), np.float32)[::-1],
    "with gaps": np.ones((6, 4, 4), np.float32)[::2],
    "zero strides": np.broadcast_to(np.ones((4, 4), np.float32), (3, 4, 4)),
    "too few": np.ones((2, 4, 4), np.float32),
    "empty blocks": np.ones((3, 0, 4), np.float32),
    "higher blocks": np.ones((3, 8, 4), np.float32),
    "wider blocks": np.ones((3, 4, 6), np.float32),
    "swapped": np.ones((3, 4, 4), SWAPPED),
    "integers": np.ones((3, 4, 4), np.int64),
    "int32": np.ones((3, 4, 4), np.int32),
    "complex": np.ones((3, 4, 4), np.complex64),
    "objects": np.full((3, 4, 4), None),
    "records": np.zeros((3, 4, 4), [("a", np.float32)]),
    "text": np.full((3, 4, 4), "a"),
    "float8": np.ones((3, 4, 4), ml_dtypes.float8_e5m2),
    "a list": [[1.0]],
    "nothing": None,
}
INDICES = {
    "too large": np.array([0, 3, 1], np.int32),
    "huge": np.array([0, 2**31 - 1, 1], np.int32),
    "beyond int32": np.array([0, 2**40, 1], np.int64),
    "negative": np.array([0, -1, 1], np.int32),
    "least": np.array([0, np.iinfo(np.int64).min, 1], np.int64),
    "floats": np.array([0.0, 2, 1]),
    "unsigned": np.array([0, 2, 1], np.uint32),
    "int16": np.array([0, 2, 1], np.int16),
    "two dimensions": np.zeros((3, 1), np.int32),
    "no dimensions": np.array(0, np.int32),
    "too few": np.array([0], np.int32),
    "too many": np.zeros(4, np.int32),
    "swapped": np.array([0, 2, 1], np.dtype(np.int32).newbyteorder()),
    "nothing": None,
}
INDPTR = {
    "decreasing": np.array([0, 2, 1], np.int32),
    "too far": np.array([0, 2, 4], np.int32),
    "huge": np.array([0, 2, 2**62], np.int64),
    "negative": np.array([-1, 2, 3], np.int32),
    "too short": np.array([0, 3], np.int32),
    "too long": np.array([0, 1, 2, 3], np.int32),
    "empty": np.array([], np.int32),
    "floats": np.array([0.0, 2, 3]),
    "scalar": np.array(0, np.int32),
    "batch": np.array([[0, 2, 3]], np.int32),
    "swapped": np.array([0, 2, 3], np.dtype(np.int32).newbyteorder()),
}
SHAPE = {
    "transposed": (12, 8),
    "larger": (9, 12),
    "wider": (8, 13),
    "huge": (8, 2**63 - 1),
    "beyond": (2**64, 12),
    "negative": (-8, 12),
    "one": (8,),
    "floats": (8.0, 12.0),
}
X = {
    "vector": np.ones(12, np.float32),
    "batch": np.ones((1, 12, 5), np.float32),
    "short": np.ones((11, 5), np.float32),
    "wide": np.ones((12, 6), np.float32),
    "swapped": np.ones((12, 5), SWAPPED),
    "complex": np.ones((12, 5), complex),
    "objects": np.full((12, 5), None),
    "int32": np.ones((12, 5), np.int32),
    "a BSR": pr.BSR((12, 5)),
    "a list": [[1.0] * 5] * 12,
}
OUT = {
    "read-only": frozen(np.zeros((8, 5), np.float32)),
    "zero strides": np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (8, 5), (0, 4)),
    "zero strides in rows": np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (8, 5), (4, 0)),
    "sliding": np.lib.stride_tricks.as_strided(np.zeros(12, np.float32), (8, 5), (4, 4)),
    "wrong shape": np.zeros((5, 8), np.float32),
    "vector": np.zeros(8, np.float32),
    "batch": np.zeros((2, 8, 5), np.float32),
    "swapped": np.zeros((8, 5), SWAPPED),
    "integers": np.zeros((8, 5), np.int32),
    "int8": np.zeros((8, 5), np.int8),
    "objects": np.full((8, 5), None),
    "nothing": None,
}
REST = {
    ("bias", "short"): np.ones(7, np.float32),
    ("bias", "matrix"): np.ones((8, 1), np.float32),
    ("bias", "swapped"): np.ones(8, SWAPPED),
    ("bias", "complex"): np.ones(8, complex),
    ("bias", "a number"): 1.0,
    ("activation", "unknown"): "tanh",
    ("activation", "a number"): 3,
    ("threads", "negative"): -1,
    ("threads", "a float"): 1.0,
    ("transposed", "a number"): 3,
}
FAULTS = [
    *(("data", *item) for item in DATA.items()),
    *(("indices", *item) for item in INDICES.items()),
    *(("indptr", *item) for item in INDPTR.items()),
    *(("shape", *item) for item in SHAPE.items()),
    *(("x", *item) for item in X.items()),
    *(("out", *item) for item in OUT.items()),
    *((*key, value) for key, value in REST.items()),
]


@pytest.mark.parametrize(
    ("name", "fault", "value"), FAULTS, ids=[f"{name}: {fault}" for name, fault, _ in FAULTS]
)
def test_products(name, fault, value):
    call = arguments()
    _core.dsd(*call.values())
    np.testing.assert_array_equal(call["out"], [[8.0] * 5] * 4 + [[4.0] * 5] * 4)
    call[name] = value
    with pytest.raises(ERRORS):
        _core.dsd(*call.values())
    if name in ("x", "out", "bias", "activation"):
        good = arguments()
        packed = _core.pack(*(good[key] for key in ("data", "indices", "indptr", "shape", "transposed")))
        with pytest.raises(ERRORS):
            _core.dsd_packed(packed, False, call["x"], call["out"], call["bias"], call["activation"], 1)
    structure = name in ("data", "indices", "indptr", "shape")
    if structure and (name, fault) not in [("data", "int32"), ("shape", "huge"), ("shape", "wider")]:
        with pytest.raises(ERRORS):
            _core.pack(*(call[key] for key in ("data", "indices", "indptr", "shape", "transposed")))


def test_integer_products_check_their_bias():
    call = arguments()
    call["data"], call["x"] = call["data"].astype(np.int8), call["x"].astype(np.int8)
    call["out"] = np.zeros((8, 5), np.int32)
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        call["bias"] = np.ones(8, dtype)
        with pytest.raises(ERRORS, match="bias"):
            _core.dsd(*call.values())
    call["bias"] = np.ones(8, np.int8)
    for activation in ("gelu", "silu"):
        with pytest.raises(ERRORS, match="integer"):
            _core.dsd(*{**call, "activation": activation}.values())


def test_odd_but_good_operands():
    expected = arguments()
    _core.dsd(*expected.values())
    good = {
        "x": [
            np.broadcast_to(np.float32(1), (12, 5)),
            np.ones((24, 15), np.float32)[::-2, ::-3],
            frozen(np.ones((12, 5), np.float32)),
            np.ones((12, 5), np.float16),
        ],
        "out": [np.zeros((5, 8), np.float32).T, np.zeros((16, 15), np.float32)[::-2, ::-3], np.zeros((8, 5))],
        "indices": [np.array([9, 1, 9, 2, 9, 0], np.int64)[::-2]],
        "data": [frozen(np.ones((3, 4, 4), np.float32)), np.ones((9, 4, 4), np.float32)],
        "threads": [0, 3, 10**6],
    }
    for name, choices in good.items():
        for value in choices:
            call = arguments()
            call[name] = value
            _core.dsd(*call.values())
            np.testing.assert_array_equal(call["out"], expected["out"])


def test_sampled_products():
    def call(**changes):
        good = {
            "a": np.ones((8, 6), np.float32),
            "b": np.ones((6, 12), np.float32),
            "indices": np.array([0, 2, 1], np.int32),
            "indptr": np.array([0, 2, 3], np.int32),
            "out": np.zeros((3, 4, 4), np.float32),
        }
        good.update(changes)
        _core.sdd(*good.values(), 1)
        return good["out"]

    np.testing.assert_array_equal(call(), np.full((3, 4, 4), 6))
    blocks = {k: v for k, v in DATA.items() if k not in ("wider blocks", "higher blocks", "integers")}
    faults = [
        # More indices than offsets name are left alone.
        *(("indices", value) for fault, value in INDICES.items() if fault != "too many"),
        *(("indptr", value) for value in INDPTR.values()),
        *(("out", value) for value in blocks.values()),
        *(("out", frozen(np.zeros((3, 4, 4), np.float32))) for _ in range(1)),
        *(("out", np.zeros((3, 4, 4), dtype)) for dtype in (np.int64, np.int32, np.int8, SWAPPED)),
        *(
            ("a", value)
            for value in (np.ones(6, np.float32), np.ones((8, 5), np.float32), np.ones((1, 8, 6)))
        ),
        *(("a", np.ones((8, 6), dtype)) for dtype in (SWAPPED, complex, object, np.int64)),
        *(("a", np.ones((9, 6), np.float32)) for _ in range(1)),
        *(
            ("b", value)
            for value in (np.ones(6, np.float32), np.ones((7, 12), np.float32), np.ones((6, 4, 3)))
        ),
        *(("b", np.ones((6, 12), dtype)) for dtype in (SWAPPED, complex, object, np.int64)),
        *(("b", np.ones((6, 8), np.float32)) for _ in range(1)),
    ]
    for name, value in faults:
        with pytest.raises(ERRORS):
            call(**{name: value})
    with pytest.raises(ERRORS):
        call(indices=np.zeros(4, np.int32), indptr=np.array([0, 2, 4]))


def test_sparse_products():
    def call(**changes):
        good = {
            "a": np.ones((3, 4, 4), np.float32),
            "a_indices": np.array([0, 2, 1], np.int32),
            "a_indptr": np.array([0, 2, 3], np.int32),
            "a_shape": (8, 12),
            "a_transposed": False,
            "b": np.ones((3, 4, 4), np.float32),
            "b_indices": np.array([0, 1, 1], np.int32),
            "b_indptr": np.array([0, 1, 2, 3], np.int32),
            "b_shape": (12, 8),
            "b_transposed": False,
            "dtype": np.dtype(np.float32),
        }
        good.update(changes)
        return _core.ssd(*good.values(), 1)

    data, indices, indptr = call()
    assert (indices.tolist(), indptr.tolist()) == ([0, 1, 1], [0, 2, 3])
    np.testing.assert_array_equal(data, 4)
    for (key, choices), operand in itertools.product(
        [("", DATA), ("_indices", INDICES), ("_indptr", INDPTR), ("_shape", SHAPE)], "ab"
    ):
        for fault, value in choices.items():
            # b has other blocks, for which these are right.
            if operand == "b" and fault in ("too long", "transposed", "wider blocks"):
                continue
            try:
                call(**{operand + key: value})
            except ERRORS:
                continue
            pytest.fail(f"{operand + key}: {fault} was taken")
    for dtype in (
        np.dtype(np.int64),
        np.dtype(object),
        np.dtype("U3"),
        SWAPPED,
        np.dtype(np.int8),
        None,
        "abc",
    ):
        with pytest.raises(ERRORS):
            call(dtype=dtype)


def test_sparse_products_at_chosen_blocks():
    def call(**changes):
        good = {
            "a": np.ones((3, 4, 4), np.float32),
            "a_indices": np.array([0, 2, 1], np.int32),
            "a_indptr": np.array([0, 2, 3], np.int32),
            "a_shape": (8, 12),
            "a_transposed": False,
            "b": np.ones((3, 4, 4), np.float32),
            "b_indices": np.array([0, 1, 1], np.int32),
            "b_indptr": np.array([0, 1, 2, 3], np.int32),
            "b_shape": (12, 8),
            "b_transposed": False,
            "indices": np.array([1, 0, 1], np.int32),
            "indptr": np.array([0, 2, 3], np.int32),
            "out": np.zeros((3, 4, 4), np.float32),
        }
        good.update(changes)
        _core.ssd_at(*good.values(), 1)
        return good["out"]

    np.testing.assert_array_equal(call(), 4)
    for key, choices in (("indices", INDICES), ("indptr", INDPTR)):
        for fault, value in choices.items():
            if fault == "too many":  # what offsets do not tell of is not looked at
                continue
            try:
                call(**{key: value})
            except ERRORS:
                continue
            pytest.fail(f"{key}: {fault} was taken")
    read_only = np.zeros((3, 4, 4), np.float32)
    read_only.flags.writeable = False
    for fault, out in {
        "too few blocks": np.zeros((2, 4, 4), np.float32),
        "other blocks": np.zeros((3, 4, 2), np.float32),
        "a batch": np.zeros((1, 3, 4, 4), np.float32),
        "not in C order": np.zeros((3, 4, 4), np.float32).transpose(0, 2, 1),
        "overlapping": np.broadcast_to(np.zeros((4, 4), np.float32), (3, 4, 4)),
        "read-only": read_only,
        "no product of its kind": np.zeros((3, 4, 4), np.int8),
        "no dtype of ours": np.zeros((3, 4, 4), np.int64),
        "no array": [[[0.0]]],
    }.items():
        try:
            call(out=out)
        except ERRORS:
            continue
        pytest.fail(f"out: {fault} was taken")
    for fault, changes in {
        "inner lengths": {"b_shape": (16, 8)},
        "inner blocks": {"b": np.ones((3, 2, 4), np.float32), "b_shape": (6, 8)},
        "columns of the pattern": {"b_shape": (12, 4)},
    }.items():
        try:
            call(**changes)
        except ERRORS:
            continue
        pytest.fail(f"{fault} were taken")


def test_a_packed_operand_cannot_be_made_by_hand():
    with pytest.raises(TypeError):
        _core.Packed()
    packed = sparse(np.random.default_rng(0), (8, 8), (4, 4)).pack()._packed
    view = memoryview(packed)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


# Changes behind a BSR's back --------------------------------------------------------------------------

CHANGES = {
    "column too large": lambda W: W.indices.__setitem__(1, 10**6),
    "largest column": lambda W: W.indices.__setitem__(-1, np.iinfo(W.indices.dtype).max),
    "negative column": lambda W: W.indices.__setitem__(0, -1),
    "one column too far": lambda W: W.indices.__setitem__(2, 5),
    "offset too large": lambda W: W.indptr.__setitem__(-1, 10**6),
    "one block too many": lambda W: W.indptr.__setitem__(-1, len(W.indices) + 1),
    "offset in the middle": lambda W: W.indptr.__setitem__(2, 10**6),
    "negative offset": lambda W: W.indptr.__setitem__(0, -1),
    "decreasing": lambda W: W.indptr.__setitem__(1, W.indptr[-1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_indices_changed_after_construction(change, kind):
    rng = np.random.default_rng(0)
    mask = pr.BlockMask.random((40, 35), (8, 8), 0.6, rng)
    parts = values(rng, (mask.nnzb, 8, 8), F32), mask.indices.astype(kind), mask.indptr.astype(kind)
    W = pr.BSR(parts, shape=(40, 35), copy=False)
    CHANGES[change](W)
    x, y = values(rng, (35, 3), F32), values(rng, (40, 20), F32)
    products = [
        lambda: W @ x, lambda: W @ x[:, 0], lambda: y.T @ W, lambda: W.T @ y, lambda: x.T @ W.T,
        lambda: pr.matmul(W, x, out=np.zeros((40, 3), np.float32)),
        lambda: pr.matmul(W, x, bias=np.ones(40, np.float32)), W.check_format,
    ]  # fmt: skip
    for call in products:
        with pytest.raises(ValueError):  # noqa: PT011 - several wordings
            call()
    for call in (lambda: W @ W.T, lambda: pr.sddmm(x[:, :1].repeat(40, 1).T, x @ x.T, W)):
        with pytest.raises(ValueError):  # noqa: PT011 - several wordings
            call()
    others = [
        W.toarray, W.T.toarray, W.T.diagonal, W.pack, W.sort_indices, W.sum_duplicates,
        W.eliminate_zeros, W.count_nonzero, W.diagonal, W.trace, lambda: W.transpose(copy=True),
        lambda: W.sum(axis=0), lambda: W.sum(axis=1), lambda: W.T.sum(axis=1), W.sum, lambda: W.max(axis=1),
        lambda: W.mean(axis=0), lambda: W[0], lambda: W[:, 0], lambda: W[0, 0], lambda: W[3:20, 1:9],
        lambda: W[8:16], lambda: W.T[0], lambda: W + W, lambda: 2 * W, lambda: -W, lambda: W * x[:, 0],
        lambda: W.multiply(W), lambda: W.mask, lambda: W.reblock(4), lambda: W.T.data, W.to_scipy, W.tocsr,
    ]  # fmt: skip
    for call in others:
        with pytest.raises(ValueError, match=r"check_format\(\)"):
            call()
    for call in (W.copy, lambda: repr(W), W.T.copy):  # follow no pattern
        call()


def test_arrays_shared_with_the_caller_change_too():
    indices, indptr = np.array([0, 1]), np.array([0, 1, 2])
    W = pr.BSR((np.ones((2, 2, 2), np.float32), indices, indptr), shape=(4, 4), copy=False)
    indices[1] = 7
    with pytest.raises(ValueError, match="7"):
        W @ np.ones(4, np.float32)
    indices[1] = 0
    np.testing.assert_array_equal(W @ np.arange(4, dtype=np.float32), [1, 1, 1, 1])
