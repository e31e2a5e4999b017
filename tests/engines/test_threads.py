"""Results do not depend on the number of threads: the same bits."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F16, F32, F64, I8, dense, interpreted, sparse, values

THREADS = [1, 2, 3, 4, 7]


def same_bits(call):
    results = []
    for n in THREADS:
        with pr.num_threads(n):
            results.append(call())
    first = results[0]
    for other in results[1:]:
        assert other.tobytes() == first.tobytes()
    return first


def size():
    """Large enough to be cut up; kernels that an interpreter runs have no threads to be cut up for."""
    return (130, 180) if interpreted() else (500, 700)


def skewed(rng, dtype):
    """One block row holds a third of all blocks, some hold none."""
    W = sparse(rng, size(), (16, 16), dtype, density=0.5)
    blocks = W.mask.to_blocks()
    blocks[5], blocks[7:20] = True, False
    mask = pr.BlockMask(blocks, (16, 16), shape=size())
    return pr.BSR.from_mask(mask, values(rng, size(), dtype))


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8], ids=str)
@pytest.mark.parametrize("n", [1, 3, 150])
def test_products(rng, dtype, n):
    W = skewed(rng, dtype)
    m, k = W.shape
    x, y = values(rng, (k, n), dtype), values(rng, (n, m), dtype)
    for w in (W, W.pack()):
        first = same_bits(lambda w=w: w @ x)
        assert first.any()
        same_bits(lambda w=w: y @ w)
    same_bits(lambda: x.T @ W.T)
    bias = values(rng, m, dtype)
    same_bits(lambda: pr.matmul(W, x, bias=bias, activation="relu"))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_sampled_and_sparse_products(rng, dtype):
    W = skewed(rng, dtype)
    m, k = W.shape
    a, b = values(rng, (m, 150), dtype), values(rng, (150, k), dtype)
    same_bits(lambda: pr.sddmm(a, b, W.mask).data)
    V = sparse(rng, (k, m), (16, 16), dtype, density=0.3)
    same_bits(lambda: (W @ V).data)


def test_repeated_calls_give_the_same_bits(rng):
    W = skewed(rng, F32)
    x = values(rng, (W.shape[1], 40), F32)
    first = W @ x
    for _ in range(5):
        assert (W @ x).tobytes() == first.tobytes()
    assert np.isfinite(dense(W)).all()
