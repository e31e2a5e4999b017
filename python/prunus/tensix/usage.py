"""What runs used, as arrays: a report keeps those of every run, so they are kept small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.tensix.spec import ChipSpec

__all__ = ["FIDELITIES", "PORTS", "TILE_FLOPS", "Usage"]

FIDELITIES: Final = ("LoFi", "HiFi2", "HiFi3", "HiFi4")
#: Multiplications and additions of a product of two tiles.
TILE_FLOPS: Final = 2 * 32**3
#: Kinds of links: to the next router along x or y, from the router into its node, out of the node.
PORTS: Final = ("x", "y", "in", "out")

_CORE: Final = np.dtype(
    [
        ("chip", "i4", (2,)),
        ("at", "i4", (2,)),
        ("computes", "?"),
        ("math_end", "f8"),
        ("math_busy", "f8"),
        ("unpack_busy", "f8", (2,)),
        ("pack_busy", "f8"),
        ("waits", "f8", (3,)),
        ("has_thread", "?", (2,)),
        ("thread_end", "f8", (2,)),
        ("thread_wait", "f8", (2,)),
        ("products", "i8"),
        ("unpack_bytes", "i8"),
        ("pack_bytes", "i8"),
    ]
)
_LINK: Final = np.dtype(
    [
        ("chip", "i4", (2,)),
        ("noc", "i4"),
        ("at", "i4", (2,)),
        ("port", "i4"),
        ("bytes", "i8"),
        ("busy", "f8"),
    ]
)
_CHANNEL: Final = np.dtype([("chip", "i4", (2,)), ("at", "i4", (2,)), ("bytes", "i8"), ("busy", "f8")])
_ETHERNET: Final = np.dtype(
    [
        ("chip", "i4", (2,)),
        ("to", "i4", (2,)),
        ("link", "i4"),
        ("packets", "i8"),
        ("bytes", "i8"),
        ("wire_bytes", "i8"),
        ("busy", "f8"),
    ]
)


@dataclass(frozen=True, eq=False)
class Usage:
    """What one run used, or several of them together.

    Attributes
    ----------
    cycles, math_cycles : float
        From start to end, and the mean over cores until the math thread ended.
    events, hop_bytes : int
        Events of the simulation; bytes times hops.
    flops : float
        Useful operations.
    peak_flops : float
        What the matrix units of the compute grid could have done in the time.
    products : ndarray
        Products of two tiles for each fidelity.
    cores, links, channels : ndarray
        A record each.
    mesh : tuple of int
        Rows and columns of chips.
    ethernet : ndarray
        A record for each link between chips that was used, one way.
    """

    cycles: float
    math_cycles: float
    events: int
    hop_bytes: int
    flops: float
    peak_flops: float
    products: NDArray[np.int64]
    cores: NDArray[Any]
    links: NDArray[Any]
    channels: NDArray[Any]
    mesh: tuple[int, int]
    ethernet: NDArray[Any]

    @classmethod
    def of(cls, spec: ChipSpec, found: Mapping[str, Any], flops: float | None) -> Usage:
        """Return what the compiled side found a run to use."""
        cores = np.array([_core(one) for one in found["cores"]], dtype=_CORE)
        links = [
            (chip, noc, at, PORTS.index(kind), moved, busy)
            for noc, at, kind, moved, busy, chip in found["links"]
        ]
        channels = [(chip, at, moved, busy) for at, moved, busy, chip in found["channels"]]
        products = np.zeros(len(FIDELITIES), np.int64)
        phases = FIDELITIES.index(found["fidelity"]) + 1
        products[phases - 1] = cores["products"].sum()
        across, down = spec.workers.compute_grid
        # A program may use more cores than products do.
        rows, columns = found["mesh"]
        units = max(across * down * rows * columns, int(cores["computes"].sum()))
        a_cycle = TILE_FLOPS / (spec.matrix.tile_cycles * phases)
        return cls(
            cycles=found["cycles"],
            math_cycles=found["math_cycles"],
            events=found["events"],
            hop_bytes=found["hop_bytes"],
            flops=float(products.sum()) * TILE_FLOPS if flops is None else float(flops),
            peak_flops=found["cycles"] * units * a_cycle,
            products=products,
            cores=cores,
            links=np.array(links, dtype=_LINK),
            channels=np.array(channels, dtype=_CHANNEL),
            mesh=(rows, columns),
            ethernet=np.array(found["ethernet"], dtype=_ETHERNET),
        )

    @classmethod
    def total(cls, runs: Sequence[Usage]) -> Usage:
        """Return the sums over runs, at least one, that followed each other."""
        if len(runs) == 1:
            return runs[0]
        return cls(
            cycles=sum(run.cycles for run in runs),
            math_cycles=sum(run.math_cycles for run in runs),
            events=sum(run.events for run in runs),
            hop_bytes=sum(run.hop_bytes for run in runs),
            flops=sum(run.flops for run in runs),
            peak_flops=sum(run.peak_flops for run in runs),
            products=np.sum([run.products for run in runs], axis=0),
            cores=_summed([run.cores for run in runs], ("chip", "at")),
            links=_summed([run.links for run in runs], ("chip", "noc", "at", "port")),
            channels=_summed([run.channels for run in runs], ("chip", "at")),
            mesh=runs[0].mesh,
            ethernet=_summed([run.ethernet for run in runs], ("chip", "to", "link")),
        )

    def on(self, chip: tuple[int, int]) -> Usage:
        """Return what one chip of a mesh used; of links between chips, those that leave it."""

        def own(records: NDArray[Any]) -> NDArray[Any]:
            mine: NDArray[Any] = records[(records["chip"] == chip).all(axis=1)]
            return mine

        cores, links = own(self.cores), own(self.links)
        share = cores["products"].sum() / max(1, self.cores["products"].sum())
        between = links["bytes"][links["port"] < PORTS.index("in")].sum()
        return replace(
            self,
            cores=cores,
            links=links,
            channels=own(self.channels),
            ethernet=own(self.ethernet),
            mesh=(1, 1),
            hop_bytes=int(between),
            products=np.rint(self.products * share).astype(np.int64),
            flops=self.flops * share,
            peak_flops=self.peak_flops / (self.mesh[0] * self.mesh[1]),
        )

    @classmethod
    def beside(cls, runs: Sequence[Usage]) -> Usage:
        """Return what chips of a mesh used, at least one, that ran at the same time: as long as the longest.

        Each run has the records of its own chip.
        """
        together = cls.total(runs)
        cycles = max(run.cycles for run in runs)
        # Each run counts the peak of the whole mesh in its own time.
        peak = max(run.peak_flops for run in runs)
        math = [run.math_cycles for run in runs if run.math_cycles]
        mean = sum(math) / len(math) if math else 0.0
        return replace(together, cycles=cycles, math_cycles=mean, peak_flops=peak)

    def thread_busy(self) -> NDArray[np.float64]:
        """Return the cycles that each core's data-movement threads worked, a column for each thread."""
        busy: NDArray[np.float64] = self.cores["thread_end"] - self.cores["thread_wait"]
        return busy

    def same(self, other: Usage) -> bool:
        """Return whether two are equal to the bit."""
        plain = ("cycles", "math_cycles", "events", "hop_bytes", "flops", "peak_flops", "mesh")
        arrays = ("products", "cores", "links", "channels", "ethernet")
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            getattr(self, name).tobytes() == getattr(other, name).tobytes() for name in arrays
        )


def _core(one: Mapping[str, Any]) -> tuple[Any, ...]:
    has, ends, waits = [False, False], [0.0, 0.0], [0.0, 0.0]
    for thread, end, wait in zip(one["threads"], one["thread_ends"], one["thread_waits"], strict=True):
        has[thread], ends[thread], waits[thread] = True, end, wait
    return (
        one["chip"],
        one["core"],
        one["computes"],
        one["math_end"],
        one["math_busy"],
        one["unpack_busy"],
        one["pack_busy"],
        one["waits"],
        has,
        ends,
        waits,
        one["products"],
        one["unpack_bytes"],
        one["pack_bytes"],
    )


def _summed(arrays: Sequence[NDArray[Any]], keys: tuple[str, ...]) -> NDArray[Any]:
    """Return records with the same keys added up, in order of the keys."""
    every = np.concatenate(arrays)
    if not len(every):
        return every
    columns = [every[key].reshape(len(every), -1) for key in keys]
    named, group = np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)
    result = np.zeros(len(named), every.dtype)
    for name in every.dtype.names or ():
        if name in keys:
            result[name][group] = every[name]
        elif every.dtype[name].base == np.bool_:
            np.logical_or.at(result[name], group, every[name])
        else:
            np.add.at(result[name], group, every[name])
    return result
