"""Which matrices of layers on disk stay on a GPU, within a budget that the caller gives."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus.cuda.runtime import Place, empty, named
from prunus.cuda.streaming import channel_of
from prunus.cuda.versions import libraries
from prunus.paged.sizes import parse_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["keep", "kept", "room_for", "stays", "there"]


class _Kept(NamedTuple):
    """A matrix, and the event that all of it was written."""

    table: torch.Tensor
    written: Any

    @property
    def nbytes(self) -> int:
        return self.table.numel() * self.table.element_size()


# Reentrant: a layer may be forgotten by the collector at any allocation.
_LOCK: Final = threading.RLock()
_BUDGETS: Final[dict[Place, int]] = {}
_KEPT: Final[weakref.WeakKeyDictionary[Any, dict[Place, _Kept]]] = weakref.WeakKeyDictionary()


def keep(budget: int | str, device: str = "cuda") -> None:
    """Let the matrices that decide in layers on disk stay on a GPU, up to so many bytes in all.

    Such a matrix is read whole by every call that prunes by it. Without a budget it streams each time; with
    one it stays after the first call that reads it, as long as there is room: layers that come later stream.
    What a layer keeps is given back when the layer goes.

    Parameters
    ----------
    budget : int or str
        Bytes, such as ``"2 GiB"``. Less than what stays already gives all of it back; 0 is the default.
    device : str
        "cuda" or "cuda:1".

    Raises
    ------
    ValueError
        If it is no number of bytes.
    PrunusError
        If there is no such device.
    """
    where, size = named(device), 0 if budget == 0 else parse_bytes(budget)
    with _LOCK:
        _BUDGETS[where] = size
        if _used(where) > size:
            for every in list(_KEPT.values()):
                every.pop(where, None)


def kept(device: str = "cuda") -> int:
    """Return the bytes that stay on a GPU because of :func:`keep`."""
    where = named(device)
    with _LOCK:
        return _used(where)


def _used(where: Place) -> int:
    return sum(every[where].nbytes for every in list(_KEPT.values()) if where in every)


def there(layer: Any, where: Place) -> torch.Tensor | None:
    """Return what of a layer stays at a place, ready for the current stream, or None."""
    with _LOCK:
        found = _KEPT.get(layer, {}).get(where)
    if found is None:
        return None
    channel_of(where).follow(found.written)
    if not where.interpreted:
        found.table.record_stream(libraries().torch.cuda.current_stream(where.device))
    return found.table


def room_for(where: Place, shape: tuple[int, int], dtype: Any) -> torch.Tensor | None:
    """Return memory for a matrix that may stay, or None: there is no room in the budget."""
    with _LOCK:
        fits = _used(where) + shape[0] * shape[1] * dtype.itemsize <= _BUDGETS.get(where, 0)
    return empty(shape, dtype, where) if fits and 0 not in shape else None


def stays(layer: Any, where: Place, table: torch.Tensor) -> None:
    """Keep a matrix that the current stream writes; the first one, where two calls do, within the budget."""
    one = _Kept(table, channel_of(where).reached())
    with _LOCK:
        if _used(where) + one.nbytes <= _BUDGETS.get(where, 0):
            _KEPT.setdefault(layer, {}).setdefault(where, one)
