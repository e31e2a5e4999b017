"""Norms and rotations of tokens, and what the compiled layer refuses."""

import numpy as np
import pytest

from prunus import _core
from prunus.cli._files import refusing

F4 = np.float32


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_norms_of_each_row(rng):
    x, scale = rng.standard_normal((5, 70), F4), rng.standard_normal(70, F4)
    y = np.full_like(x, np.nan)
    _core.rms_norm(x, scale, 1e-5, y)
    want = x / np.sqrt((x.astype(float) ** 2).mean(1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(y, want, rtol=1e-5)
    alone = np.empty((1, 70), F4)
    _core.rms_norm(x[3:4], scale, 1e-5, alone)
    np.testing.assert_array_equal(alone[0], y[3])


def test_rotations_turn_halves_in_place(rng):
    whole = rng.standard_normal((3, 6, 8), F4)
    heads, angles = whole[:, 1:5], rng.standard_normal((3, 4))
    cos, sin = np.cos(angles).astype(F4), np.sin(angles).astype(F4)
    before = whole.copy()
    _core.rotate(heads, cos, sin)
    a, b = before[:, 1:5, :4], before[:, 1:5, 4:]
    c, s = cos[:, None], sin[:, None]
    np.testing.assert_allclose(
        heads, np.concatenate([a * c - b * s, b * c + a * s], -1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(whole[:, [0, 5]], before[:, [0, 5]])


@pytest.mark.parametrize("shapes", [((2, 8), 7, (2, 8)), ((2, 8), 8, (2, 7)), ((2, 8), 8, (3, 8))])
def test_norms_refuse_shapes_that_do_not_fit(shapes):
    x, scale, y = (np.ones(shape, F4) for shape in shapes)
    with pytest.raises(ValueError, match="expected x and y of one shape"):
        _core.rms_norm(x, scale, 1e-5, y)


@pytest.mark.parametrize("shapes", [((2, 3, 7), (2, 3)), ((2, 3, 8), (2, 3)), ((2, 3, 8), (1, 4))])
def test_rotations_refuse_angles_that_do_not_fit(shapes):
    heads, cos = (np.ones(shape, F4) for shape in shapes)
    with pytest.raises(ValueError, match="expected angles of shape"):
        _core.rotate(heads, cos, cos)


def test_rows_that_are_not_contiguous_are_refused():
    x, scale = np.ones((2, 16), F4)[:, ::2], np.ones(8, F4)
    with pytest.raises(ValueError, match="x: expected rows whose values are contiguous"):
        _core.rms_norm(x, scale, 1e-5, np.empty((2, 8), F4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate": (9, 6)},
        {"gate": (10, 5)},
        {"up": (10, 5)},
        {"down": (9, 4)},
        {"down": (2, 10, 4)},
        {"down": (1, 9, 4)},
        {"out": (3, 4)},
        {"out": (2, 5)},
        {"b_up": (9,)},
        {"b_down": (5,)},
        {"live": (2, 9)},
    ],
    ids=str,
)
def test_layers_refuse_what_does_not_fit(wrong):
    shapes = {"x": (2, 6), "up": (10, 6), "gate": (10, 6), "down": (10, 4), "out": (2, 4)}
    shapes |= {"live": (2, 10), "b_up": (10,), "b_down": (4,)}
    a = {k: np.ones(s, np.uint8 if k == "live" else F4) for k, s in (shapes | wrong).items()}
    with pytest.raises(ValueError, match="expected"):
        _core.feed_forward(
            a["x"], a["up"], a["gate"], a["down"], a["out"], a["live"], 1, a["b_up"], a["b_down"], "silu", 2
        )


def test_a_reader_that_has_gone_is_no_fault_of_the_command():
    with pytest.raises(BrokenPipeError), refusing():
        raise BrokenPipeError(32, "Broken pipe")
