"""Operands that the suites share."""

import ml_dtypes
import numpy as np

import prunus as pr

SIZE = 2048
DTYPES = ["float32", "bfloat16"]
BLOCKS = [16, 32, 64]
DENSITIES = [0.1, 0.3]
COLUMNS = [1, 16, 128, 512]


def normal(rows, columns, dtype, seed=0):
    """Random values: never zeros, and the same in every run."""
    rng = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return rng.standard_normal((rows, columns), np.float32).astype(kind)


def weights(dtype, block, density, seed=0):
    """A pruned matrix of SIZE × SIZE."""
    dense = normal(SIZE, SIZE, dtype, seed)
    return pr.BSR.from_dense(dense, blocksize=(block, block), density=density)
