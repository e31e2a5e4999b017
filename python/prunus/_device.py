"""Which operands live on a GPU: what public operations ask before they look at anything else."""

from __future__ import annotations

import sys
from typing import Any, Final

from prunus.engines import ACTIVE

__all__ = ["on_device", "what"]

# DLPack's number of memory on a CUDA GPU.
_CUDA: Final = 2


def on_device(*values: Any) -> bool:
    """Say whether at least one operand lives where kernels of ``prunus.cuda`` run.

    torch's CUDA tensors, what ``to("cuda")`` gave, and other tensors there that speak DLPack. Where Triton's
    interpreter stands for the GPU, so do torch's tensors in host memory within ``with pr.device("cuda")``.
    """
    torch = sys.modules.get("torch")
    for value in values:
        kind = type(value)
        if kind.__module__ == "numpy" or value is None:
            continue
        if torch is not None and isinstance(value, torch.Tensor):
            if value.device.type == "cuda" or _interpreted():
                return True
        elif isinstance(value, (list, tuple)):
            if on_device(*value):
                return True
        elif getattr(kind, "on_cuda", False) or _speaks(value):
            return True
    return False


def what(value: Any) -> str:
    """Return what a value is called in messages of operations that only the host has.

    Examples
    --------
    >>> what(3)
    'int'
    """
    name = type(value).__name__
    if getattr(type(value), "on_cuda", False):
        return f"one on a GPU (prunus.cuda.{name}); the operation is the host's: pass .to('cpu')"
    return name


def _interpreted() -> bool:
    where = getattr(ACTIVE.get(), "where", None)
    return bool(getattr(where, "interpreted", False))


def _speaks(value: Any) -> bool:
    """Say whether an object of another library lies on a CUDA GPU."""
    if isinstance(value, type) or not hasattr(value, "__dlpack_device__"):
        return False
    try:
        return int(value.__dlpack_device__()[0]) == _CUDA
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False
