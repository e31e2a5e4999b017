"""What a program's run used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What a run took and moved.

    Attributes
    ----------
    chip : str
        Name of the chip.
    clock_ghz : float
        Its clock.
    cycles : float
        From the first kernel's start to the last one's end.
    math_cycles : float
        Mean over cores of the cycles until the math thread ended.
    events : int
        Events of the simulation.
    cores : list of dict
        Of each core that took part: ``core``, ``math_end``, ``math_busy``, ``unpack_busy``, ``pack_busy``,
        ``waits`` (of unpack, math and pack), ``thread_ends`` and ``thread_waits`` of its data-movement
        kernels, in cycles.
    links : list of tuple
        Of each link of the networks that was used: network, NoC coordinates of the node that it leaves, kind
        ("x", "y", "in", "out" of the node), bytes, and busy cycles.
    channels : list of tuple
        Of each channel of DRAM: NoC coordinates, bytes, and busy cycles.
    hop_bytes : int
        Bytes times hops.
    """

    chip: str
    clock_ghz: float
    cycles: float
    math_cycles: float
    events: int
    hop_bytes: int
    cores: list[dict[str, Any]] = field(repr=False)
    links: list[tuple[int, tuple[int, int], str, int, float]] = field(repr=False)
    channels: list[tuple[tuple[int, int], int, float]] = field(repr=False)

    @property
    def seconds(self) -> float:
        """Seconds of the chip's clock."""
        return self.cycles / self.clock_ghz / 1e9

    @property
    def dram_bytes(self) -> int:
        """Bytes to and from DRAM."""
        return sum(moved for _, moved, _ in self.channels)

    @property
    def noc_bytes(self) -> int:
        """Bytes that entered the networks, headers and requests included; a multicast enters once."""
        return sum(moved for _, _, port, moved, _ in self.links if port == "out")
