"""Operands of kernels as rough as they may be."""

import numpy as np
import torch

from prunus.cuda.blocks import Operand


def operand(rng, shape, blocksize, blocks, where, dtype=torch.float32, room=0):
    """Blocks anywhere, repeated and in no order; with room for more, which holds what must not be seen."""
    (m, k), (br, bc) = shape, blocksize
    rows, cols = -(-m // br), -(-k // bc)
    row = np.sort(rng.integers(0, rows, blocks))
    indices = rng.integers(0, cols, blocks + room)
    indices[blocks:] = 10**6
    indptr = np.searchsorted(row, np.arange(rows + 1))
    data = rng.standard_normal((blocks + room, br, bc))
    data[blocks:] = np.nan
    dense = np.zeros((rows * br, cols * bc))
    data = torch.from_numpy(data).to(dtype)
    for e in range(blocks):
        i, j = row[e] * br, indices[e] * bc
        data[e, max(m - i, 0) :] = np.nan
        data[e, :, max(k - j, 0) :] = np.nan
        dense[i : i + br, j : j + bc] += data[e].double().numpy()
    made = Operand(
        data.to(where.device),
        torch.from_numpy(indices).to(where.device),
        torch.from_numpy(indptr).to(where.device),
        shape,
    )
    return made, dense[:m, :k]
