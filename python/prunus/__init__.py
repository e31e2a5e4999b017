"""Block-sparse tensors at dense-GEMM speed, through NumPy-style calls.

Examples
--------
>>> import numpy as np
>>> import prunus as pr
>>> w = np.kron(np.eye(4), np.ones((8, 8))).astype(np.float32)
>>> W = pr.BSR(w, blocksize=8)
>>> W.density
0.25
>>> x = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
>>> np.allclose(W @ x, w @ x, atol=1e-5)
True
"""

from prunus._bsr import BSR
from prunus._config import show_config
from prunus._core import __version__
from prunus._errors import PrunusError
from prunus._mask import BlockMask
from prunus._threads import get_num_threads, num_threads
from prunus.engines import device
from prunus.ops import matmul, sddmm
from prunus.pruning.attention import attention

__all__ = [
    "BSR",
    "BlockMask",
    "PrunusError",
    "__version__",
    "attention",
    "device",
    "get_num_threads",
    "matmul",
    "num_threads",
    "sddmm",
    "show_config",
]
