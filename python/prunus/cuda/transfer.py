"""Between NumPy's arrays and a place's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunus._dtypes import BFLOAT16, Array
from prunus.cuda.runtime import Place, memory
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["download", "send", "shared", "upload"]


class _Writable:
    """Memory that NumPy says is read-only, as an array that is not: torch has no other, and warns of it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        shown = array.__array_interface__
        self.__array_interface__ = {**shown, "data": (shown["data"][0], False)}


def shared(array: Array) -> torch.Tensor:
    """Return an ndarray as a tensor, of the same memory where torch knows such strides and dtypes."""
    torch = libraries().torch
    if array.dtype == BFLOAT16:
        return shared(array.view(np.int16)).view(torch.bfloat16)
    if not array.flags.aligned or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        # A copy, and not ascontiguousarray: that keeps a negative stride along an axis of length 1.
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)


def upload(array: Array, where: Place) -> torch.Tensor:
    """Return an ndarray in a place's memory; under the interpreter the same memory where that can be.

    Nobody writes to what is returned.
    """
    with memory(array.shape, array.dtype, where):
        return shared(array).to(where.device)


def send(array: Array, where: Place) -> torch.Tensor:
    """Return a small ndarray in a place's memory, without waiting for what its stream does meanwhile.

    It goes by way of pinned memory, which torch keeps until it was copied.
    """
    if where.interpreted:
        return upload(array, where)
    torch, host = libraries().torch, shared(array)
    with memory(array.shape, array.dtype, where):
        staged = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
        staged.copy_(host)
        return staged.to(where.device, non_blocking=True)


def download(tensor: torch.Tensor, out: Array) -> None:
    """Copy a tensor to an ndarray of its shape and dtype, any strides; waits until it was computed."""
    torch = libraries().torch
    host = tensor.cpu()
    if out.dtype == BFLOAT16:
        out.view(np.int16)[...] = host.view(torch.int16).numpy()
    else:
        out[...] = host.numpy()
