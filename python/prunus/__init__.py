"""Block-sparse arrays at dense-GEMM speed, through NumPy-style calls.

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

from typing import TYPE_CHECKING, Any

from prunus import _start as _start  # first: it tells of bad settings
from prunus import llm as llm
from prunus import paged as paged
from prunus._bsr import BSR
from prunus._config import show_config
from prunus._core import __version__
from prunus._devices import Device, devices
from prunus._errors import FormatError, PrunusError
from prunus._mask import BlockMask
from prunus._threads import get_num_threads, num_threads
from prunus._trace import Trace, trace
from prunus.engines import device
from prunus.ops import matmul, sddmm
from prunus.paged.files import open_file as open
from prunus.paged.save import save
from prunus.pruning.attention import attention
from prunus.pruning.calibrate import calibrate
from prunus.pruning.ffn import ffn
from prunus.pruning.linear import linear
from prunus.pruning.moe import moe
from prunus.pruning.packed import FFN
from prunus.pruning.policies import Fixed, Policy, Router, Statistics, Threshold, TopK
from prunus.pruning.predictor import Predictor
from prunus.pruning.scan import selective_scan, selective_step
from prunus.pruning.stored import grow, prune

if TYPE_CHECKING:
    from prunus import cuda as cuda
    from prunus import tensix as tensix
    from prunus import torch as torch

__all__ = [
    "BSR",
    "FFN",
    "BlockMask",
    "Device",
    "Fixed",
    "FormatError",
    "Policy",
    "Predictor",
    "PrunusError",
    "Router",
    "Statistics",
    "Threshold",
    "TopK",
    "Trace",
    "__version__",
    "attention",
    "calibrate",
    "cuda",
    "device",
    "devices",
    "ffn",
    "get_num_threads",
    "grow",
    "linear",
    "matmul",
    "moe",
    "num_threads",
    "open",
    "paged",
    "prune",
    "save",
    "sddmm",
    "selective_scan",
    "selective_step",
    "show_config",
    "tensix",
    "trace",
]


def __getattr__(name: str) -> Any:
    # The simulator and GPUs are imported where they are used: most programs never do.
    if name in ("cuda", "tensix", "torch"):
        from importlib import import_module

        return import_module(f"prunus.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
