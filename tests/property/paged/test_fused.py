"""Expressions that compiled code evaluates, whole or in parts, against NumPy, bit by bit."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16
from prunus.paged import evaluate, fused, pagers

PAGER = pagers.new_pager(1 << 22)
DTYPES = [np.dtype(d) for d in ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]] + [
    BF16
]
NATURAL = [np.dtype(d) for d in ["f4", "f8", "i4", "i8", "u1", "?"]]
UNARY = [
    np.negative, np.positive, np.absolute, np.square, np.sqrt, np.reciprocal, np.floor, np.ceil, np.trunc,
    np.rint, np.sign, np.isnan, np.isinf, np.isfinite, np.logical_not, np.invert, np.exp, np.modf,
]  # fmt: skip
BINARY = [
    np.add, np.subtract, np.multiply, np.true_divide, np.maximum, np.minimum, np.equal,
    np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal, np.logical_and, np.logical_or,
    np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.floor_divide, np.arctan2,
]  # fmt: skip
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, np.inf, -np.inf, np.nan, 65504.0, 1e-7, 1e30, 1e-40, 3e38]


@pytest.fixture(autouse=True, params=[(1, 7), (3, 700)], ids=["one thread", "three threads"])
def cut(request, monkeypatch):
    threads, tile = request.param
    monkeypatch.setattr(evaluate, "TILE", tile)
    with pr.num_threads(threads):
        yield


def draw_values(data, shape, dtype):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype.kind == "b":
            return rng.random(shape) < 0.5
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            near = rng.integers(max(info.min, -9), 9, shape)
            return np.where(rng.random(shape) < 0.8, near, rng.choice([info.min, info.max, 0])).astype(dtype)
        wild = rng.choice(SPECIAL, shape)
        return np.where(rng.random(shape) < 0.7, rng.normal(size=shape) * 9, wild).astype(dtype)


def draw_operand(data, shape, dtypes):
    """Return an operand as NumPy has it, and on disk or (not as large as the whole) in memory."""
    dtype = data.draw(st.sampled_from(dtypes))
    kind = data.draw(st.sampled_from(["whole", "whole", "row", "column", "memory", "number", "scalar"]))
    if kind == "number":
        number = data.draw(st.sampled_from([0, 1, 3, -2, 0.5, 2.0, True, 1e-3]))
        return number, number
    if kind == "scalar":
        value = draw_values(data, (1,), dtype)[0]
        return value, value
    own = {"row": shape[-1:], "column": (*shape[:-1], 1)}.get(kind, shape)
    x = draw_values(data, own, dtype)
    if kind == "memory" or (kind != "whole" and data.draw(st.booleans())):
        return x, x
    return x, pr.paged.from_array(x, order=data.draw(st.sampled_from("CF")), pager=PAGER)


def fits(x, to):
    """Say whether a cast is defined: floats that fit no integer become what their place makes of them."""
    if to.kind not in "iu" or not (x.dtype.kind == "f" or x.dtype == BF16):
        return True
    return bool(np.all(np.isfinite(x) & (x >= (0 if to.kind == "u" else -100)) & (x <= 100)))


def clip(v, low, high):
    """Clip: on disk that is maximum and minimum, whose signs of zeros np.clip changes."""
    return np.minimum(np.maximum(v, low), high) if isinstance(v, np.ndarray) else np.clip(v, low, high)


def draw_step(data, pool):
    """Return what NumPy and prunus make of one more call, or None where NumPy refuses it."""
    pick = st.integers(0, len(pool) - 1)
    kind = data.draw(st.sampled_from(["unary", "binary", "binary", "binary", "where", "clip", "cast"]))
    if kind == "unary":
        func, count = data.draw(st.sampled_from(UNARY)), 1
    elif kind == "binary":
        func, count = data.draw(st.sampled_from(BINARY)), 2
    elif kind == "where":
        func, count = np.where, 3
    elif kind == "clip":
        low = data.draw(st.sampled_from([0, 1, -1.5]))
        func, count = (lambda v: clip(v, low, 4)), 1
    else:
        to = data.draw(st.sampled_from(DTYPES))
        func, count = (lambda v: v.astype(to)), 1
    chosen = [pool[data.draw(pick)] for _ in range(count)]
    if all(not hasattr(lazy, "on_disk") for _, lazy in chosen):
        chosen[-1] = pool[0]
    halves = {getattr(x, "dtype", None) for x, _ in chosen} & {BF16, np.dtype("f2")}
    if len(halves) == 2 or (BF16 in halves and (count > 1 or kind == "clip")):
        return None  # what NumPy makes of these is another test's affair
    if kind == "cast" and not fits(np.asarray(chosen[0][0]), to):
        return None
    try:
        plain = func(*[x for x, _ in chosen])
    except (TypeError, OverflowError, ValueError):
        return None
    lazy = func(*[a for _, a in chosen])
    return (plain[0], lazy[0]) if isinstance(plain, tuple) else (plain, lazy)


def bits(x):
    """Return the bits of an array; of NaN there is but one."""
    x = np.array(x, order="C")
    if x.dtype.kind in "fV":
        x[np.isnan(x)] = np.nan
    return x.view(np.uint8)


def draw_expression(data, dtypes=DTYPES):
    shape = data.draw(st.sampled_from([(5,), (3, 4), (2, 3, 5), (40, 30), (3, 650), (1, 1), (9, 1)]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = draw_values(data, shape, data.draw(st.sampled_from(dtypes)))
        pool = [(first, pr.paged.from_array(first, pager=PAGER))]
        pool += [draw_operand(data, shape, dtypes) for _ in range(data.draw(st.integers(1, 3)))]
        for _ in range(data.draw(st.integers(1, 6))):
            step = draw_step(data, pool)
            if step is not None:
                pool.append(step)
    found = [pair for pair in pool if isinstance(pair[1], pr.paged.PagedExpr)]
    return found[-1] if found else None


@settings(max_examples=600)
@given(st.data())
def test_random_expressions(data):
    pair = draw_expression(data)
    if pair is None:
        return
    plain, lazy = pair
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = lazy.load()
    assert got.dtype == plain.dtype
    assert got.shape == plain.shape
    np.testing.assert_array_equal(bits(got), bits(plain))


@settings(max_examples=200)
@given(st.data())
def test_written_to_disk_and_to_memory(data):
    pair = draw_expression(data, NATURAL)
    if pair is None:
        return
    plain, lazy = pair
    to = data.draw(st.sampled_from(NATURAL))
    if not fits(plain, to):
        to = np.dtype("f4")
    order = data.draw(st.sampled_from("CF"))
    on_disk = pr.paged.from_array(np.zeros(plain.shape, to), order=order, pager=PAGER)
    there = np.zeros((*plain.shape[:-1], 2 * plain.shape[-1]), to)[..., ::2]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = plain.astype(to)
        on_disk[...] = lazy
        np.copyto(there, lazy, casting="unsafe")
    np.testing.assert_array_equal(bits(on_disk.load()), bits(expected))
    np.testing.assert_array_equal(bits(there), bits(expected))


WARNING = [
    np.reciprocal,
    lambda v: v / (v - 1),
    lambda v: np.sqrt(v) * 2,
    lambda v: v * v * v,
    lambda v: v - v,
    lambda v: np.log(v) + 1,
    lambda v: v.astype("i2"),
    lambda v: v.astype("f4") * 3,
    lambda v: np.maximum(v, 0) < 2,
]


@settings(max_examples=200)
@given(st.data())
def test_warnings_are_those_of_numpy(data):
    x = draw_values(
        data, (4, 5), data.draw(st.sampled_from([np.dtype("f4"), np.dtype("f8"), np.dtype("f2")]))
    )
    a = pr.paged.from_array(x, pager=PAGER)
    func = data.draw(st.sampled_from(WARNING))
    modes = data.draw(
        st.sampled_from([{"all": "raise"}, {"all": "warn"}, {"over": "raise", "under": "warn"}])
    )

    def outcome(values):
        with np.errstate(**modes), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = func(values)
                found = found if isinstance(found, np.ndarray) else found.load()
            except FloatingPointError:
                return "raised"  # of what, depends on which tile is first
        return found.shape, {str(w.message) for w in caught}

    assert outcome(a) == outcome(x)


@settings(max_examples=60)
@given(st.data())
def test_fmax_and_fmin(data):
    # Of zeros with different signs NumPy takes one or the other, by their place; there are none here.
    dtype = data.draw(st.sampled_from([np.dtype(d) for d in ("f2", "f4", "f8", "i4")]))
    x, y = (draw_values(data, (30, 9), dtype) for _ in range(2))
    if dtype.kind == "f":
        x[x == 0], y[y == 0] = 0, 0
    a = pr.paged.from_array(x, pager=PAGER)
    for func in (np.fmax, np.fmin):
        np.testing.assert_array_equal(bits(func(a, y).load()), bits(func(x, y)))


def parts(lazy):
    """Return the steps of an expression's pass: compiled parts, and names of what NumPy computes."""
    program = evaluate.Pass([lazy._node])._program
    return [
        type(s).__name__ if isinstance(s, fused.Part) else getattr(s.func, "__name__", "cast")
        for s in program
    ]


def test_what_is_compiled():
    x = np.linspace(-2, 2, 24, dtype="f4").reshape(4, 6)
    a = pr.paged.from_array(x, pager=PAGER)
    row = x.mean(0)
    assert parts((a - row) / 3) == ["Part"]
    assert parts(np.where(a > 0, np.clip(a * 2, 0, 1), -a).astype("f8")) == ["Part"]
    assert parts(np.exp(a - 1) * 2 + 1) == ["Part", "exp", "Part"]
    assert parts(np.exp(a * 2) + np.tanh(a * 2)) == ["Part", "exp", "tanh", "Part"]
    assert parts(np.exp(a)) == ["exp"]
    assert parts(a.astype("i4") // 3) == ["Part", "floor_divide"]
    assert parts(a.astype(">f4") + 1)[-1] == "add"
    assert parts(a.astype("c8") + 1)[-1] == "add"
    small = pr.paged.from_array(row, pager=PAGER)
    assert parts((small * 2) + a) == ["multiply", "Part"]  # a row once, not for each of them


def test_flagged_tiles_alone_are_repeated():
    x = np.ones((100, 7), "f4")
    x[50, 3] = 0
    a = pr.paged.from_array(x, pager=PAGER)
    with np.errstate(divide="ignore"):
        expected = (1 / x) + 1
    with pytest.warns(RuntimeWarning, match="divide by zero encountered in divide"):
        got = ((1 / a) + 1).load()
    np.testing.assert_array_equal(got, expected)
