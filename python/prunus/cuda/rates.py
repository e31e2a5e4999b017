"""How fast a GPU multiplies and reads its memory: what ``prunus.devices`` measures."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

from prunus.cuda.runtime import Place, empty, on, place
from prunus.cuda.versions import libraries

__all__ = ["measure", "places"]

# Square products that fill a GPU, and memory several times its cache; an interpreter's are its host's.
_SIZE: Final = 4096
_BYTES: Final = 1 << 29


def places() -> list[Place]:
    """Return all GPUs.

    Raises
    ------
    PrunusError
        If there is none.
    """
    first = place()
    if first.interpreted:
        return [first]
    return [place(index) for index in range(libraries().torch.cuda.device_count())]


def measure(where: Place, seconds: float) -> tuple[dict[str, float], float]:
    """Return rates of dense products by dtype, in FLOP/s, and of memory, in bytes/s read and written.

    Parameters
    ----------
    where : Place
        Which GPU; waits for it.
    seconds : float
        How long each is measured.
    """
    torch = libraries().torch
    size, room = (256, 1 << 22) if where.interpreted else (_SIZE, _BYTES)
    rates = {}
    with on(where):
        for name in ("float32", "float64", "bfloat16", "float16"):
            # Not zeros: those take less power, and so more clocks.
            a = torch.randn(size, size, device=where.device).to(getattr(torch, name))
            rates[name] = 2 * size**3 * _rate(where, lambda a=a: torch.matmul(a, a), seconds)
        source = empty((room,), torch.uint8, where).random_()
        target = torch.empty_like(source)
        moved = 2 * room * _rate(where, lambda: target.copy_(source), seconds)
    return rates, moved


def _rate(where: Place, call: Any, seconds: float) -> float:
    """Return how many calls a second a GPU does."""
    cuda = libraries().torch.cuda
    wait = (lambda: None) if where.interpreted else (lambda: cuda.synchronize(where.device))
    for _ in range(2):
        call()
    wait()
    done, begin = 0, perf_counter()
    while True:
        for _ in range(8):
            call()
        wait()
        done += 8
        took = perf_counter() - begin
        if took >= seconds:
            return done / took
