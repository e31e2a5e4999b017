"""Calls on tensors without memory: what they would launch on a GPU of some architecture."""

from __future__ import annotations

from collections.abc import Callable

from prunus.cuda.chips import CHIPS
from prunus.cuda.runtime import AHEAD, RECORDER, Launch, Place
from prunus.cuda.versions import libraries

__all__ = ["ahead", "record"]


def ahead(arch: str) -> Place:
    """Return a place of torch's meta tensors that stands for a GPU of an architecture, such as "sm_90"."""
    chip = CHIPS[arch]
    return Place(libraries().torch.device("meta"), arch, chip.name, chip.multiprocessors, chip.shared)


def record(call: Callable[[Place], object], where: Place) -> list[Launch]:
    """Return what a call would launch, in order.

    Parameters
    ----------
    call : callable
        Makes meta tensors and calls functions on them; is given the place.
    where : Place
        What meta tensors stand for: :func:`ahead`.

    Raises
    ------
    Exception
        What the call raises. Meta tensors hold no values, so one that reads a value back, or whose shapes
        depend on values, cannot return: what can be recorded neither waits for the GPU nor asks it anything.
    """
    noted: list[Launch] = []
    recorder, place = RECORDER.set(noted), AHEAD.set(where)
    try:
        call(where)
    finally:
        RECORDER.reset(recorder)
        AHEAD.reset(place)
    return noted
