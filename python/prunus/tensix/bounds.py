"""What a run waits for.

The rule. Of each kind of part the busiest one counts, as a share of the run's cycles: matrix unit ("math"),
unpacker, packer, link of a network ("NoC"), channel of DRAM, link between chips ("ethernet"). Of these the
one with the largest share is what the run waits for, if it works at least `BINDS` of the time, with two
exceptions:

- "imbalance", if that part belongs to a core and cores have unequal work: the mean over cores of what their
  busiest unit works is less than `BINDS` of the most that a core's does. With equal shares the run would be
  shorter.
- "imbalance" as well, if no part works that much, and on the mean a core's kernels end before `EARLY` of the
  time: most of the chip is done and waits for a few cores.

Else it is "latency": hand-overs, round trips and the RISC-V cores' own work between parts none of which
works all the time.

A link that leads into or out of a DRAM endpoint serves that channel alone and is as busy as the channel
holds it up: it counts as DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from prunus.tensix.usage import PORTS, Usage

__all__ = ["BINDS", "EARLY", "Bound", "judge"]

#: From this share of the time on, a part that works is what a run waits for.
BINDS: Final = 0.7
#: Before this share of the time the mean core is done where a few make all others wait. Products whose last
#: writes share links end one core after the other, at 0.7 on the mean: that is no unequal work.
EARLY: Final = 0.5

_OF_CORES: Final = ("math", "unpack", "pack")


@dataclass(frozen=True)
class Bound:
    """What a run waits for.

    Attributes
    ----------
    name : str
        "math", "unpack", "pack", "NoC", "DRAM", "ethernet", "latency" or "imbalance".
    busiest : dict of str to float
        Share of the time for which the busiest part of each kind works.
    imbalance : float
        Share of the busiest matrix unit's work that the mean one is short of.
    """

    name: str
    busiest: dict[str, float]
    imbalance: float


def judge(usage: Usage) -> Bound:
    """Name what one run waits for, by the rule of this module."""
    cores, cycles = usage.cores, usage.cycles
    computing = cores[cores["computes"]]
    units = np.stack(
        [computing["math_busy"], computing["unpack_busy"].max(axis=1, initial=0), computing["pack_busy"]]
    )
    on_chip, dram = _links(usage)
    work = dict(zip(_OF_CORES, units.max(axis=1, initial=0).tolist(), strict=True))
    work["NoC"] = on_chip
    work["DRAM"] = dram
    if usage.mesh != (1, 1):
        work["ethernet"] = float(usage.ethernet["busy"].max(initial=0.0))
    busiest = {part: busy / cycles if cycles else 0.0 for part, busy in work.items()}
    imbalance = _short(units[0])
    name = max(busiest, key=lambda part: busiest[part])
    if busiest[name] >= BINDS:
        if name in _OF_CORES and _short(units.max(axis=0)) > 1 - BINDS:
            name = "imbalance"
    elif cycles and len(cores) and _ends(usage).mean() < EARLY * cycles:
        name = "imbalance"
    else:
        name = "latency"
    return Bound(name, busiest, imbalance)


def _links(usage: Usage) -> tuple[float, float]:
    """Return busy cycles of the busiest link, and of the busiest channel with its own two links."""
    links, channels = usage.links, usage.channels
    ends = {(int(x), int(y)) for x, y in channels["at"]}
    own = np.array([(int(x), int(y)) in ends for x, y in links["at"]], dtype=bool)
    own &= links["port"] >= PORTS.index("in")
    at_channels = max(links["busy"][own].max(initial=0.0), channels["busy"].max(initial=0.0))
    return float(links["busy"][~own].max(initial=0.0)), float(at_channels)


def _short(work: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Return the share of the most work that the mean is short of."""
    most = float(work.max(initial=0.0))
    return 1 - float(work.mean()) / most if most else 0.0


def _ends(usage: Usage) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return when the last kernel of each core ended."""
    ends: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.maximum(
        usage.cores["thread_end"].max(axis=1), usage.cores["math_end"]
    )
    return ends
