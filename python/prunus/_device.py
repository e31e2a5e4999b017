"""Which operands live on a GPU: what public operations ask before they look at anything else."""

from __future__ import annotations

import sys
from typing import Any, Final

from prunus.engines import ACTIVE

__all__ = ["on_device", "what"]

# DLPack's number of memory on a CUDA GPU.
_CUDA: Final = 2
# What values of a type are: what each call would find out anew.
_KINDS: Final[dict[type, str]] = {}
_MOST: Final = 256


def on_device(*values: Any) -> bool:
    """Say whether at least one operand lives where kernels of ``prunus.cuda`` run.

    torch's CUDA tensors, what ``to("cuda")`` gave, and other tensors there that speak DLPack. Where Triton's
    interpreter stands for the GPU, so do torch's tensors in host memory within ``with pr.device("cuda")``. Of
    a list the first element tells: most are of numbers, and long.
    """
    return any(_is_there(value) for value in values)


def _is_there(value: Any) -> bool:
    kind = _KINDS.get(type(value)) or _kind(type(value))
    if kind == "host":
        return False
    if kind == "list":
        return bool(value) and _is_there(value[0])
    if kind == "tensor":
        return bool(value.device.type == "cuda") or _interpreted()
    return kind == "gpu" or _speaks(value)


def _kind(kind: type) -> str:
    """Return what values of a type are, and remember it."""
    torch = sys.modules.get("torch")
    if torch is not None and issubclass(kind, torch.Tensor):
        found = "tensor"
    elif issubclass(kind, (list, tuple)):
        found = "list"
    elif getattr(kind, "on_cuda", False):
        found = "gpu"
    elif kind.__module__ == "numpy" or not hasattr(kind, "__dlpack_device__"):
        found = "host"
    else:
        found = "dlpack"
    if len(_KINDS) >= _MOST:  # classes that a program makes as it runs
        _KINDS.clear()
    _KINDS[kind] = found
    return found


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
    try:
        return int(value.__dlpack_device__()[0]) == _CUDA
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False
