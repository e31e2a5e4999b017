"""What operations on a GPU take for a dense array: one rule for the operands of all of them.

A torch tensor there, as it is; or another library's array there that speaks DLPack (CuPy, JAX), whose
memory is shared. Nothing is moved between devices without a word: NumPy's arrays and tensors elsewhere raise,
and the message says what to call.

A public operation begins with ::

    where = where_of(x, w, bias)  # the first operand that lives on a GPU says where; raises if none does
    x = as_floats(x, "x", where)  # or as_tensor, where any dtype will do
    bias = None if bias is None else as_floats(bias, "bias", where)

and from there on has torch tensors on one device, without gradients. Compiled ahead of time, the same code
runs on torch's "meta" tensors, which stand for those of the place in ``prunus.cuda.runtime.AHEAD``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from prunus._arrays import is_scipy
from prunus._errors import PrunusError
from prunus._storage import BlockStorage
from prunus.cuda.runtime import AHEAD, Place, place, place_of
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["as_floats", "as_tensor", "check_place", "is_tensor", "where_of"]

# DLPack's numbers of a host's memory, and of memory on a CUDA GPU.
_HOST: Final = 1
_CUDA: Final = 2


def where_of(*values: Any) -> Place:
    """Return where an operation runs: where the first operand lives that is on a GPU.

    Parameters
    ----------
    *values : object
        The operands; lists and tuples of them are looked into, anything else is passed over.

    Raises
    ------
    PrunusError
        If none of them lives where kernels run.
    """
    where = _first(values)
    if where is None:
        raise PrunusError("no operand lives on a GPU; move them there with .to('cuda')")
    return where


def _first(values: Any) -> Place | None:
    torch, _, interpreted, _ = libraries()
    serves = {"cuda": True, "cpu": interpreted, "meta": AHEAD.get() is not None}
    for value in values:
        found: Place | None = None
        if isinstance(value, torch.Tensor):
            if serves.get(value.device.type):
                found = place_of(value)
        elif isinstance(value, (list, tuple)):
            found = _first(value)
        elif getattr(type(value), "on_cuda", False):
            found = value._place
        else:
            device = _dlpack_device(value)
            if device is not None and device[0] == _CUDA:
                found = place(device[1])
            elif device is not None and device[0] == _HOST and interpreted:
                found = place()
        if found is not None:
            return found
    return None


def as_tensor(value: Any, name: str, where: Place, expected: str = "a tensor on the GPU") -> torch.Tensor:
    """Return a dense operand as a torch tensor that shares its memory.

    Parameters
    ----------
    value : Tensor, or an object with ``__dlpack__``
        What the caller passed.
    name : str
        The argument's name, for messages.
    where : Place
        Where the operation runs.
    expected : str
        What the argument may be, for messages.

    Returns
    -------
    Tensor
        On the place's device, strided. What another library is still writing, the current stream waits for.

    Raises
    ------
    TypeError
        If it is no dense array, or a tensor that requires grad where torch records gradients.
    PrunusError
        If it lives elsewhere.
    """
    torch = libraries().torch
    if isinstance(value, torch.Tensor):
        return _checked(value, name, where)
    if isinstance(value, BlockStorage) or getattr(type(value), "on_cuda", False):
        raise TypeError(f"{name} must be {expected}, got a {type(value).__name__}")
    if isinstance(value, (np.ndarray, np.generic)) or is_scipy(value):
        raise PrunusError(
            f"{name} ({type(value).__module__.partition('.')[0]}.{type(value).__name__}) is in host memory, "
            f"the operation runs on {where}: operands are not moved behind your back; pass a tensor, "
            f"torch.as_tensor({name}).to({_target(where)!r})"
        )
    device = _dlpack_device(value)
    if device is None:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    # The interpreter's GPU is the host's memory.
    if device[0] != (_HOST if where.interpreted else _CUDA):
        raise PrunusError(
            f"{name} ({type(value).__name__}) lives on another device (DLPack's number {device[0]}), the "
            f"operation runs on {where}; copy it there first"
        )
    try:
        tensor = torch.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name} cannot be read through DLPack: {error}") from error
    return _checked(tensor, name, where)


def as_floats(value: Any, name: str, where: Place) -> torch.Tensor:
    """Return a dense operand like :func:`as_tensor`, of a dtype that layers compute with.

    Raises
    ------
    TypeError
        If it does not hold floats, or as :func:`as_tensor`.
    PrunusError
        As :func:`as_tensor`.
    """
    torch = libraries().torch
    tensor = as_tensor(value, name, where)
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name} must hold floats (float32, float64, float16 or bfloat16), got dtype {tensor.dtype}; "
            f"convert with {name}.to(torch.float32)"
        )
    return tensor


def check_place(tensor: torch.Tensor, name: str, where: Place) -> None:
    """Raise PrunusError unless a tensor lives where the operation runs."""
    device, wanted = tensor.device, where.device
    if device.type != wanted.type or (device.type == "cuda" and device.index != wanted.index):
        raise PrunusError(
            f"{name} lives on {device}, the operation runs on {where}; move it with "
            f"{name}.to({_target(where)!r})"
        )


def _target(where: Place) -> str:
    """Return what a caller writes in ``.to()``."""
    return "cuda" if where.interpreted else str(where.device)


def _checked(tensor: torch.Tensor, name: str, where: Place) -> torch.Tensor:
    torch = libraries().torch
    if tensor.requires_grad:
        # Where torch records nothing, its own results have no gradients either.
        if torch.is_grad_enabled():
            raise TypeError(
                f"{name} is a tensor that requires grad, and results have none; pass {name}.detach(), or "
                "call within torch.no_grad()"
            )
        tensor = tensor.detach()
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} is a torch tensor with layout {tensor.layout}, expected a dense one; "
            "prunus.cuda.BSR takes those with layout torch.sparse_bsr"
        )
    check_place(tensor, name, where)
    # The imaginary part of a conjugate has its sign in a bit of the tensor, which kernels do not see.
    return tensor.resolve_neg()


def is_tensor(value: Any) -> bool:
    """Say whether :func:`as_tensor` reads a value, wherever it lives: torch's, or one that speaks DLPack."""
    return isinstance(value, libraries().torch.Tensor) or _dlpack_device(value) is not None


def _dlpack_device(value: Any) -> tuple[int, int] | None:
    """Return where an object of another library lies by DLPack's numbers; None: it does not speak it."""
    if isinstance(value, (type, np.ndarray, np.generic)) or not hasattr(value, "__dlpack_device__"):
        return None
    try:
        kind, index = value.__dlpack_device__()
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None
    return int(kind), int(index)
