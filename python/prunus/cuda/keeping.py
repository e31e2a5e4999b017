"""Arrays of the host's memory that operations need again and again: uploaded once, and kept.

What is uploaded in a call makes the host wait, and cannot be part of a CUDA graph. So what belongs to a mask
or to a policy is uploaded by the first call that needs it on a device, and goes when its owner goes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from prunus._dtypes import Array
from prunus._errors import PrunusError
from prunus.cuda.runtime import Place, is_captured
from prunus.cuda.transfer import upload
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["check_uploads", "hold", "kept"]

# By the owner's identity, as masks compare by values: a reference to the owner, and what is kept for it with
# what it was made of.
_KEPT: Final[dict[int, tuple[weakref.ref[Any], dict[Hashable, tuple[Any, torch.Tensor]]]]] = {}


def kept(
    owner: Any, name: Hashable, where: Place, make: Callable[[], Array], of: object = None
) -> torch.Tensor:
    """Return an array of an owner in a place's memory; nobody writes to it.

    Parameters
    ----------
    owner : object
        Whose it is; what is kept goes with it.
    name : hashable
        Which of its arrays.
    where : Place
        Where to.
    make : callable
        Returns the array; only called where it is not there yet.
    of : object, optional
        What it is made of: made anew where that is another object than the last time.

    Raises
    ------
    PrunusError
        If it is not there yet, and the current stream is being captured in a CUDA graph.
    """
    found = _KEPT.get(id(owner))
    if found is None or found[0]() is not owner:
        found = _KEPT[id(owner)] = weakref.ref(owner, _forgetter(id(owner))), {}
    held = found[1]
    one = held.get((where.device, name))
    if one is None or one[0] is not of:
        array = np.ascontiguousarray(make())
        if where.device.type == "meta":
            torch = libraries().torch
            made = torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device="meta")
        else:
            check_uploads(where)
            made = upload(array, where)
        one = held[where.device, name] = of, made
    hold(one[1], where)
    return one[1]


# What graphs were captured with: they read it whenever they are replayed, and nobody says when that ends.
_IN_GRAPHS: Final[dict[int, torch.Tensor]] = {}


def hold(tensor: torch.Tensor, where: Place) -> None:
    """Keep memory for good if the current stream is being captured in a CUDA graph that will read it."""
    if is_captured(where):
        _IN_GRAPHS[id(tensor)] = tensor


def _forgetter(key: int) -> Callable[[weakref.ref[Any]], None]:
    def forget(reference: weakref.ref[Any]) -> None:
        found = _KEPT.get(key)
        if found is not None and found[0] is reference:
            del _KEPT[key]

    return forget


def check_uploads(where: Place) -> None:
    """Raise PrunusError if what is uploaded now would be part of a CUDA graph."""
    if is_captured(where):
        raise PrunusError(
            "the first call with a mask, a policy or a list of experts uploads what belongs to it, which a "
            "CUDA graph cannot capture: call the operation once before it is captured"
        )
