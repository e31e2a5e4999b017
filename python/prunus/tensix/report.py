"""What programs on a chip took, moved and waited for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from prunus._table import format_table
from prunus.tensix.bounds import Bound, judge
from prunus.tensix.errors import MisusedError
from prunus.tensix.mesh import every
from prunus.tensix.spec import ChipSpec
from prunus.tensix.usage import PORTS, TILE_FLOPS, Usage

if TYPE_CHECKING:
    from prunus.tensix.timeline import Timeline

__all__ = ["Operation", "Report"]


class _Figures:
    """The figures that one operation and several of them have in common."""

    _spec: ChipSpec
    _usage: Usage

    @property
    def chip(self) -> str:
        """Name of the chip."""
        name: str = self._spec.name
        return name

    @property
    def clock_ghz(self) -> float:
        """The chip's clock."""
        clock: float = self._spec.clock_ghz
        return clock

    @property
    def cycles(self) -> float:
        """Cycles from the first kernel's start to the last one's end."""
        return self._usage.cycles

    @property
    def math_cycles(self) -> float:
        """Mean over cores of the cycles until the math thread ended."""
        return self._usage.math_cycles

    @property
    def events(self) -> int:
        """Events of the simulation."""
        return self._usage.events

    @property
    def seconds(self) -> float:
        """Seconds of the chip's clock."""
        return self.cycles / self.clock_ghz / 1e9

    @property
    def microseconds(self) -> float:
        """Microseconds of the chip's clock."""
        return self.cycles / self.clock_ghz / 1e3

    @property
    def matrix_flops(self) -> int:
        """Multiplications and additions of the matrix units in products, padding included."""
        return int(self._usage.products.sum()) * TILE_FLOPS

    @property
    def flops(self) -> float:
        """Useful multiplications and additions; those of the matrix units where the caller did not say."""
        return self._usage.flops

    @property
    def tflops(self) -> float:
        """Useful operations, in 10^12 a second."""
        return self.flops / self.seconds / 1e12 if self.cycles else 0.0

    @property
    def utilisation(self) -> float:
        """Share of what the matrix units of the compute grid could have done at this fidelity."""
        return self.matrix_flops / self._usage.peak_flops if self._usage.peak_flops else 0.0

    @property
    def busy(self) -> dict[str, float]:
        """Share of the time for which the mean matrix unit, unpacker, packer and data-movement thread work.

        The mean is over cores that have such a kernel. A data-movement thread works while it does not wait.
        """
        usage, cores = self._usage, self._usage.cores
        computing = cores[cores["computes"]]
        threads = usage.thread_busy()[cores["has_thread"]]
        parts = {
            "math": computing["math_busy"],
            "unpack": computing["unpack_busy"].max(axis=1, initial=0.0),
            "pack": computing["pack_busy"],
            "data movement": threads,
        }
        return {
            part: float(work.mean()) / self.cycles if len(work) and self.cycles else 0.0
            for part, work in parts.items()
        }

    @property
    def dram_bytes(self) -> int:
        """Bytes to and from DRAM."""
        return int(self._usage.channels["bytes"].sum())

    @property
    def noc_bytes(self) -> int:
        """Bytes that entered the networks, headers and requests included; a multicast enters once."""
        links = self._usage.links
        return int(links["bytes"][links["port"] == PORTS.index("out")].sum())

    @property
    def mesh(self) -> tuple[int, int]:
        """Rows and columns of chips; (1, 1) is one chip."""
        return self._usage.mesh

    @property
    def ethernet_bytes(self) -> int:
        """Bytes of data times links between chips that they passed."""
        return int(self._usage.ethernet["bytes"].sum())

    @property
    def ethernet(self) -> list[tuple[tuple[int, int], tuple[int, int], int, int, int, float]]:
        """Each link between chips that was used, one way.

        Row and column of the chip that sends and of the one that receives, number of the link, bytes of
        data, bytes on the wire, and busy cycles: of the wire, or of the tile that sends where that takes
        longer.
        """
        return [
            (
                (int(one["chip"][0]), int(one["chip"][1])),
                (int(one["to"][0]), int(one["to"][1])),
                int(one["link"]),
                int(one["bytes"]),
                int(one["wire_bytes"]),
                float(one["busy"]),
            )
            for one in self._usage.ethernet
        ]

    @property
    def hop_bytes(self) -> int:
        """Bytes times hops: a byte is counted on each link between routers that it passes."""
        return self._usage.hop_bytes

    @property
    def cores(self) -> list[dict[str, Any]]:
        """Each core that took part, in cycles.

        ``core``, ``chip`` (row and column in a mesh), ``computes`` (whether it has a compute kernel),
        ``math_end``, ``math_busy``, ``unpack_busy`` (of both), ``pack_busy``, ``waits`` (of unpack, math
        and pack), ``threads`` (which of the data-movement threads 0 and 1 have a kernel), ``thread_ends``
        and ``thread_waits`` (theirs), ``products`` (of two tiles), ``unpack_bytes`` and ``pack_bytes``.
        """
        found = []
        for one in self._usage.cores:
            threads = [thread for thread in (0, 1) if one["has_thread"][thread]]
            found.append(
                {
                    "core": tuple(one["at"].tolist()),
                    "chip": tuple(one["chip"].tolist()),
                    "computes": bool(one["computes"]),
                    "math_end": float(one["math_end"]),
                    "math_busy": float(one["math_busy"]),
                    "unpack_busy": one["unpack_busy"].tolist(),
                    "pack_busy": float(one["pack_busy"]),
                    "waits": one["waits"].tolist(),
                    "threads": threads,
                    "thread_ends": [float(one["thread_end"][thread]) for thread in threads],
                    "thread_waits": [float(one["thread_wait"][thread]) for thread in threads],
                    "products": int(one["products"]),
                    "unpack_bytes": int(one["unpack_bytes"]),
                    "pack_bytes": int(one["pack_bytes"]),
                }
            )
        return found

    @property
    def links(self) -> list[tuple[int, tuple[int, int], str, int, float]]:
        """Each link of the networks on chip that was used; of one chip of a mesh, see :meth:`Report.on`.

        Network, NoC coordinates of the node that it leaves, kind ("x", "y", "in" to the node, "out" of it),
        bytes, and busy cycles.
        """
        return [
            (int(one["noc"]), (int(x), int(y)), PORTS[one["port"]], int(one["bytes"]), float(one["busy"]))
            for one in self._usage.links
            for x, y in [one["at"]]
        ]

    @property
    def channels(self) -> list[tuple[tuple[int, int], int, float]]:
        """Each channel of DRAM: NoC coordinates, bytes, and busy cycles."""
        return [
            ((int(x), int(y)), int(one["bytes"]), float(one["busy"]))
            for one in self._usage.channels
            for x, y in [one["at"]]
        ]

    @property
    def energy(self) -> dict[str, float]:
        """Estimate of the energy, in joules, by part: "math", "L1", "NoC", "DRAM" and "static".

        In a mesh there is "ethernet" too, by the ``pj_per_byte`` of the chip's ``[ethernet]``.

        Products of tiles, bytes unpacked, packed, and moved between L1 and the networks, bytes times hops,
        bytes of DRAM, and time, each times a constant of the chip's ``[energy]``, whose sources stand
        there. None of these is the vendor's figure: compare runs by it, not cards.
        """
        usage, cost = self._usage, self._spec.energy
        links, workers = usage.links, self._spec.workers
        port = links["port"] >= PORTS.index("in")
        here = [x in workers.x and y in workers.y for x, y in links["at"][port].tolist()]
        through_l1 = int(links["bytes"][port][here].sum())
        l1 = int(usage.cores["unpack_bytes"].sum() + usage.cores["pack_bytes"].sum()) + through_l1
        chips = self.mesh[0] * self.mesh[1]
        wire = int(usage.ethernet["wire_bytes"].sum())
        return {
            **({"ethernet": 1e-12 * wire * self._spec.ethernet.pj_per_byte} if wire else {}),
            "math": 1e-12 * float((usage.products * cost.product_pj).sum()),
            "L1": 1e-12 * l1 * cost.l1_pj_per_byte,
            "NoC": 1e-12 * self.hop_bytes * cost.noc_pj_per_byte_hop,
            "DRAM": 1e-12 * self.dram_bytes * cost.dram_pj_per_byte,
            "static": self.seconds * cost.static_watts * chips,
        }

    def _row(self, name: str, bound: str) -> list[str]:
        """Return the cells of a table."""
        busy = [f"{share:.0%}" for share in self.busy.values()]
        moved = [self.dram_bytes, self.noc_bytes, self.hop_bytes]
        if self.mesh != (1, 1):
            moved.append(self.ethernet_bytes)
        traffic = [f"{1e-6 * some:.2f}" for some in moved]
        energy = 1e3 * sum(self.energy.values())
        return [
            name,
            f"{self.cycles:.0f}",
            f"{self.microseconds:.1f}",
            f"{self.tflops:.2f}",
            f"{self.utilisation:.0%}",
            *busy,
            *traffic,
            f"{energy:.3g}",
            bound,
        ]


_HEAD = ["operation", "cycles", "us", "TFLOP/s", "of peak", "math", "unpack", "pack", "data"]
_HEAD += ["DRAM MB", "NoC MB", "hop MB", "mJ", "bound"]


class Operation(_Figures):
    """One run of a program.

    Attributes
    ----------
    name : str
        What it is called.
    fidelity : str
        Phases of the matrix unit.
    timeline : Timeline or None
        What its threads did, if that was recorded.
    count : int
        Runs that it is the sum of: 1, but for those that a chip no longer has one by one.
    """

    count: int = 1
    _spent: Counter[str] | None = None

    def __init__(
        self, spec: ChipSpec, found: Mapping[str, Any], *, name: str, flops: float | None = None
    ) -> None:
        self.name = name
        self.fidelity: str = found["fidelity"]
        self.timeline: Timeline | None = None
        if "timeline" in found:
            from prunus.tensix.timeline import Timeline

            self.timeline = Timeline(found["timeline"])
        self._spec = spec
        self._usage = Usage.of(spec, found, flops)

    @classmethod
    def together(cls, spec: ChipSpec, runs: Sequence[Operation]) -> Operation:
        """Return the sum of runs that followed each other, at least one, as one operation, "earlier"."""
        one = cls.__new__(cls)
        one.name, one.fidelity, one.timeline = "earlier", runs[-1].fidelity, None
        one._spec, one._usage = spec, Usage.total([run._usage for run in runs])
        one.count = sum(run.count for run in runs)
        one._spent = sum((run.spent for run in runs), Counter())
        return one

    @property
    def spent(self) -> Counter[str]:
        """The cycles spent under each bound."""
        return Counter({self.bound: self.cycles}) if self._spent is None else self._spent

    def _with(self, usage: Usage) -> Operation:
        """Return the same operation with another usage, without a timeline."""
        other = copy(self)
        other.__dict__.pop("_bound", None)
        other.timeline, other._usage, other._spent = None, usage, None
        return other

    @classmethod
    def beside(cls, runs: Sequence[Operation]) -> Operation:
        """Return one operation of what chips of a mesh did at the same time, at least one of them."""
        return runs[0]._with(Usage.beside([run._usage for run in runs]))

    @classmethod
    def after(cls, runs: Sequence[Operation]) -> Operation:
        """Return one operation of several runs that followed each other, at least one."""
        return runs[-1]._with(Usage.total([run._usage for run in runs]))

    @cached_property
    def _bound(self) -> Bound:
        return judge(self._usage)

    @property
    def bound(self) -> str:
        """What it waits for: "math", "unpack", "pack", "NoC", "DRAM", "ethernet", "latency" or "imbalance".

        The part whose busiest one works the largest share of the time, from 70 % on; "imbalance" where
        cores have unequal shares of that work, or most are done early; else "latency".
        :mod:`prunus.tensix.bounds` has the rule.
        """
        return self._bound.name

    @property
    def busiest(self) -> dict[str, float]:
        """Share of the time for which the busiest part of each kind works, as the bound is judged by."""
        return dict(self._bound.busiest)

    @property
    def imbalance(self) -> float:
        """Share of the busiest matrix unit's work that the mean one is short of."""
        return self._bound.imbalance

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Operation):
            return NotImplemented
        same = (self.name, self.fidelity, self._spec) == (other.name, other.fidelity, other._spec)
        return same and self._usage.same(other._usage)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Operation {self.name!r}: {self.cycles:.0f} cycles, bound by {self.bound}>"


class Report(_Figures):
    """What the runs of programs on a chip took and moved: all together, and each as one of ``operations``.

    All figures are sums over operations, or shares of the summed time; what :meth:`Chip.run` returns has one.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> chip = pr.tensix.Chip("n150")
    >>> source = chip.buffer(np.ones((64, 64), np.float32))
    >>> def reader(k):
    ...     for i in range(source.pages):
    ...         yield k.noc_async_read(source.page(i), 0, source.page_bytes)
    ...     yield k.noc_async_read_barrier()
    >>> program = pr.tensix.Program()
    >>> program.kernel(reader, (0, 0))
    >>> one = chip.run(program, name="read")
    >>> one.dram_bytes == 64 * 64 * 4, one.cycles == chip.report().cycles
    (True, True)
    >>> chip.report().operations
    (<Operation 'read': ... cycles, bound by latency>,)
    """

    def __init__(self, spec: ChipSpec, operations: Sequence[Operation]) -> None:
        self._spec = spec
        self._operations = tuple(operations)

    @cached_property
    def _usage(self) -> Usage:  # type: ignore[override]
        return Usage.total([one._usage for one in self._operations])

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The runs, in order; of a chip that had very many, the first ones are together, as "earlier"."""
        return self._operations

    @property
    def bound(self) -> str:
        """What most of the time was waited for."""
        spent: Counter[str] = Counter()
        for one in self._operations:
            spent.update(one.spent)
        return max(spent, key=lambda name: spent[name])

    def table(self, *, grouped: bool = False) -> str:
        """Return a table with a line for each operation and one for all of them.

        Parameters
        ----------
        grouped : bool
            One line for all operations of a name.

        Returns
        -------
        str
            Times, useful operations a second, the matrix units' share of their peak, mean busy shares of
            math, unpack, pack and data-movement threads, megabytes (10^6) of DRAM, into the networks and
            times hops, an estimate of the energy, and the bound, with the share of the time for which its
            busiest part works.
        """
        rows = []
        if grouped:
            names = dict.fromkeys(one.name for one in self._operations)
            for name in names:
                own = Report(self._spec, [one for one in self._operations if one.name == name])
                count = sum(one.count for one in own.operations)
                rows.append(own._row(f"{name} x {count}" if count > 1 else name, own.bound))
        else:
            for one in self._operations:
                share = one.busiest.get(one.bound)
                rows.append(one._row(one.name, one.bound if share is None else f"{one.bound} {share:.0%}"))
        rows.append(self._row("total", self.bound))
        head = _HEAD if self.mesh == (1, 1) else [*_HEAD[:-2], "Ethernet MB", *_HEAD[-2:]]
        return format_table(head, rows)

    def on(self, chip: tuple[int, int]) -> Report:
        """Return the same runs as one chip of a mesh saw them.

        Cores, links, channels, bytes and busy shares are that chip's, cycles those of the mesh.

        Parameters
        ----------
        chip : tuple of int
            Its row and column.

        Raises
        ------
        MisusedError
            If there is no such chip.
        """
        rows, columns = self.mesh
        if chip not in every(self.mesh):
            raise MisusedError(f"misused: chip {chip!r}: the mesh has {rows} x {columns}")
        return Report(self._spec, [one._with(one._usage.on(chip)) for one in self._operations])

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draw how busy cores and links are; needs matplotlib, the extra ``plot``.

        Parameters
        ----------
        path : path-like, optional
            Where to save the picture; its ending says in which format.

        Returns
        -------
        matplotlib.figure.Figure
            Shares of the time: each core's matrix unit, its data-movement threads, and each link of both
            networks on the grid, with the channels of DRAM as squares.

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is missing.
        MisusedError
            If it is about several chips: ``report.on(chip).plot()`` draws one of them.
        """
        from prunus.tensix.heat import draw

        if self.mesh != (1, 1):
            raise MisusedError("misused: a picture is of one chip of a mesh: report.on((row, column)).plot()")

        figure = draw(self._spec, self._usage)
        if path is not None:
            figure.savefig(path)
        return figure

    def save(self, path: str | PathLike[str]) -> None:
        """Write operations, and the timelines of those that have one, as Chrome trace events.

        Perfetto and chrome://tracing open them: a process for each core, a thread for each of its threads,
        and one process for operations, which follow each other.

        Parameters
        ----------
        path : path-like
            File to write, usually ``*.json``.
        """
        from prunus.tensix.timeline import save

        save(path, self._operations)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Report):
            return NotImplemented
        return self._spec == other._spec and self._operations == other._operations

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count = sum(one.count for one in self._operations)
        what = f"{count} operations" if count != 1 else repr(self._operations[0].name)
        time = f"{self.cycles:.0f} cycles, {self.microseconds:.1f} us"
        return f"<Report of {self.chip}: {what}, {time}, bound by {self.bound}>"
