"""``devices()``: what this machine has to multiply with, and how fast each is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunus import _core
from prunus._config import cpu
from prunus._threads import get_num_threads

__all__ = ["Device", "devices"]


@dataclass(frozen=True, slots=True)
class Device:
    """Something that multiplies.

    Attributes
    ----------
    name : str
        What :class:`prunus.device` and ``W.to`` call it: "cpu", "cuda:0", "tensix:n150".
    description : str
        The processor, as its vendor calls it.
    measured : bool
        Whether the rates were measured just now; those of simulated chips are what their descriptions say.
    flops : dict of str to float
        Multiplications and additions a second by dtype, the largest that products can reach.
    bytes_per_second : float
        Rate at which memory is read: a GPU's, or a chip's DRAM.
    """

    name: str
    description: str
    measured: bool
    flops: dict[str, float]
    bytes_per_second: float

    def __str__(self) -> str:
        rates = ", ".join(f"{kind} {rate * 1e-9:,.0f} GFLOP/s" for kind, rate in self.flops.items())
        how = "" if self.measured else ", as described"
        return f"{self.name}: {self.description}; {rates}; {self.bytes_per_second * 1e-9:,.1f} GB/s{how}"


def devices(seconds: float = 0.1) -> list[Device]:
    """Return the engines of this machine with their rates of arithmetic and memory.

    Parameters
    ----------
    seconds : float, default 0.1
        How long each rate is measured.

    Returns
    -------
    list of Device
        The CPU; each GPU, where the device "cuda" works; each simulated chip of the package.

    Raises
    ------
    ValueError
        If ``seconds`` is not positive.

    Examples
    --------
    >>> import prunus as pr
    >>> found = pr.devices(seconds=0.01)
    >>> found[0].name, found[0].measured, found[0].flops["float32"] > 0
    ('cpu', True, True)
    >>> "tensix:n150" in [one.name for one in found]
    True
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    threads = get_num_threads()
    this = cpu()
    host = Device(
        "cpu",
        f"{this.name}, {threads} thread{'s' if threads > 1 else ''}, {this.level}",
        True,
        {kind: _core.measure_flops(kind, threads, seconds) for kind in ("float32", "float64", "bfloat16")},
        _core.measure_bandwidth(threads, seconds),
    )
    return [host, *_gpus(seconds), *(_chip(name) for name in _core.chip_names())]


def _gpus(seconds: float) -> list[Device]:
    from prunus.cuda.runtime import is_usable

    if not is_usable():
        return []
    from prunus.cuda.rates import measure, places

    return [Device(str(where), where.name, True, *measure(where, seconds)) for where in places()]


def _chip(name: str) -> Device:
    from prunus.tensix.engine import make
    from prunus.tensix.estimate import PHASES
    from prunus.tensix.usage import TILE_FLOPS

    spec = make(f"tensix:{name}").chip.spec
    across, down = spec.workers.compute_grid
    # A tile's product of the lowest fidelity, bfloat16's, on all cores of the grid that programs get.
    each = TILE_FLOPS / (spec.matrix.tile_cycles * PHASES["LoFi"])
    rate = each * across * down * spec.clock_ghz * 1e9
    return Device(
        f"tensix:{name}",
        f"Tenstorrent {name} (simulated)",
        False,
        {"bfloat16": rate},
        spec.dram.nominal_gb_per_s * 1e9,
    )
