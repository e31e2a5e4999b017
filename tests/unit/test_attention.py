"""What attention refuses, and what it says."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16
from prunus import _core
from prunus.pruning.policies import Fixed, Router, TopK


def ones(*shape):
    return np.ones(shape, np.float32)


GOOD = (ones(4, 10, 8), ones(2, 12, 8), ones(2, 12, 6))


def wrong(message, q=GOOD[0], k=GOOD[1], v=GOOD[2], error=ValueError, **keywords):
    with pytest.raises(error, match=message):
        pr.attention(q, k, v, **keywords)


def test_shapes():
    wrong("number of dimensions", q=ones(8), k=ones(8), v=ones(8))
    wrong("number of dimensions", q=ones(10, 8))
    wrong("number of dimensions", k=ones(1, 2, 12, 8))
    wrong("same heads and length", v=ones(2, 11, 6))
    wrong("same heads and length", v=ones(4, 12, 6))
    wrong("same last dimension", k=ones(2, 12, 7))
    wrong("multiple of those of k and v, got 4 and 3", k=ones(3, 12, 8), v=ones(3, 12, 6))
    wrong("multiple", k=ones(0, 12, 8), v=ones(0, 12, 6))
    wrong("batch dimensions", q=ones(2, 4, 10, 8), k=ones(3, 2, 12, 8), v=ones(3, 2, 12, 6))


def test_operands():
    for kind in (np.int8, np.int32, bool, np.complex64, ">f4"):
        wrong("q must hold floats", q=GOOD[0].astype(kind), error=TypeError)
    wrong("v must hold floats", v=GOOD[2].astype(np.int64), error=TypeError)
    wrong("BSR", k=pr.BSR(ones(12, 8), blocksize=4), error=TypeError)
    wrong("masked array", k=np.ma.masked_array(GOOD[1]), error=TypeError)
    wrong("k must be an array of numbers, got NoneType", k=None, error=TypeError)
    nested = pr.attention(ones(2, 3).tolist(), ones(4, 3).tolist(), ones(4, 1).tolist())
    np.testing.assert_allclose(nested, ones(2, 1))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scale(scale):
    wrong("scale must be finite", scale=scale)


def test_blocksize():
    wrong("at least 1, got 0", blocksize=0)
    wrong("at least 1, got -3", blocksize=-3)
    for size in (1.5, "64", None, (64, 64), True):
        wrong("must be an integer", blocksize=size, error=TypeError)
    assert pr.attention(*GOOD, blocksize=2**62, prune=TopK(1)).shape == (4, 10, 6)


def test_masks():
    wrong("pass a BlockMask", mask=np.ones((10, 12), bool), error=TypeError)
    wrong("must be a BlockMask, got list", mask=[[True]], error=TypeError)
    wrong(
        r"\(12, 10\), but there are 10 queries and 12 keys", mask=pr.BlockMask.full((12, 10), 4), blocksize=4
    )
    wrong("blocksize=4", mask=pr.BlockMask.full((10, 12), 4), blocksize=8)
    wrong("blocks of 4", mask=pr.BlockMask.full((10, 12), (4, 2)), blocksize=4)
    wrong("do not broadcast to the heads", mask=pr.BlockMask.full((3, 10, 12), 4), blocksize=4)
    wrong("do not broadcast", mask=pr.BlockMask.full((2, 4, 10, 12), 4), blocksize=4)
    pr.attention(*GOOD, mask=pr.BlockMask.full((4, 10, 12), 4), blocksize=4)
    pr.attention(*GOOD, mask=pr.BlockMask.full((1, 10, 12), 4), blocksize=4)
    # One block of everything, however large it is.
    pr.attention(*GOOD, mask=pr.BlockMask.full((10, 12), 64))
    pr.attention(*GOOD, mask=pr.BlockMask.full((10, 12), 100), blocksize=200)


def test_policies():
    wrong("prune must be a policy", prune=0.1, error=TypeError)
    wrong("call it", prune=TopK, error=TypeError)
    wrong("must return an array of booleans", prune=lambda s: s.norms, error=TypeError, blocksize=4)
    wrong("must return shape", prune=lambda s: s.norms[1:] > 0, blocksize=4)
    wrong("3 blocks of queries and 3 blocks of keys", prune=Fixed(np.ones((5, 3), bool)), blocksize=4)
    # An array has a row for each block of queries of each head, whatever is in it.
    wrong(r"take \(12, 3\) or \(3,\)", prune=Fixed(np.ones((3, 3), bool)), blocksize=4)
    wrong("pass a BlockMask of shape", prune=Fixed(np.ones((10, 3), bool)), blocksize=4)
    for shape, size in [((12, 12), 4), ((10, 12), 2), ((10, 12), (4, 2)), ((10, 12), 5)]:
        wrong("Fixed's mask", prune=Fixed(pr.BlockMask.full(shape, size)), blocksize=4)
    pr.attention(*GOOD, prune=Fixed(pr.BlockMask.full((10, 12), 64)), blocksize=20)
    wrong("cannot choose", prune=Router(5), blocksize=4)


def test_inputs_are_left_alone():
    operands = [x.copy() for x in GOOD]
    for x in operands:
        x.flags.writeable = False
    pr.attention(*operands, prune=TopK(1), blocksize=4, causal=True)
    for x, before in zip(operands, GOOD, strict=True):
        np.testing.assert_array_equal(x, before)


def call(q=GOOD[0], k=GOOD[1], v=GOOD[2], out=None, live=None, scale=1.0, size=4):
    out = np.empty((4, 10, 6), np.float32) if out is None else out
    _core.attention(q, k, v, out, live, scale, False, size, 1)
    return out


def test_the_compiled_function_checks_what_memory_safety_depends_on():
    np.testing.assert_allclose(call(live=np.ones((4, 3, 3), np.int8)), 1)
    wrongs = [
        {"q": ones(10, 8)},
        {"q": ones(4, 10, 7)},
        {"q": ones(3, 10, 8)},
        {"k": ones(2, 13, 8)},
        {"k": ones(8)},
        {"v": ones(3, 12, 6)},
        {"v": ones(2, 12, 7)},
        {"out": np.empty((4, 9, 6), np.float32)},
        {"out": np.empty((2, 10, 6), np.float32)},
        {"out": np.broadcast_to(np.empty((10, 6), np.float32), (4, 10, 6))},
        {"out": np.lib.stride_tricks.as_strided(ones(10, 6), (4, 10, 6), (0, 24, 4))},
        {"live": np.ones((4, 3, 2), np.int8)},
        {"live": np.ones((3, 3), np.int8)},
        {"size": 0},
        {"size": 5, "live": np.ones((4, 3, 3), np.int8)},
        {"scale": np.nan},
    ]
    for arguments in wrongs:
        with pytest.raises(ValueError, match=r"."):
            call(**arguments)
    for arguments in [{"live": np.ones((4, 3, 3), np.float32)}, {"k": np.ones((2, 12, 8), np.int8)}]:
        with pytest.raises(TypeError):
            call(**arguments)
    with pytest.raises(OverflowError):
        call(size=-1)
    call(out=np.empty((4, 10, 6), BF16))


def test_the_compiled_scores_check_too():
    q, k = ones(4, 10, 8), ones(2, 12, 8)
    for bad in (
        np.empty((4, 3, 2), np.float32),
        np.empty((2, 3, 3), np.float32),
        np.empty((3, 3), np.float32),
    ):
        with pytest.raises(ValueError, match=r"."):
            _core.pooled_scores(q, k, bad, 1.0, 4, 1)
    with pytest.raises(ValueError, match=r"."):
        _core.pooled_scores(q, k, np.empty((4, 3, 3), np.float32), 1.0, 0, 1)
    with pytest.raises(TypeError):
        _core.pooled_scores(q, k, np.empty((4, 3, 3), np.int32), 1.0, 4, 1)
    out = np.empty((4, 3, 3), np.float32)
    _core.pooled_scores(q, k, out, 0.5, 4, 1)
    np.testing.assert_array_equal(out, 4)


def test_the_benchmark_reports_every_row():
    from prunus.bench import attention as bench

    rows = bench.measure(1, length=200, dtypes=["float32", "bfloat16"], lengths=(100,))
    text = bench.report(rows)
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}
    assert all(row.pruned > 0 and row.unpruned > 0 for row in rows)
    assert rows[0].memory[0].result == 8 * 100 * 64 * 4
    assert "bfloat16" in text
    assert "extra MiB" in text
