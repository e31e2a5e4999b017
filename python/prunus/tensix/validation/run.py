"""Rows as programs on simulated chips, several at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from prunus import _core
from prunus.tensix.errors import TensixError
from prunus.tensix.validation.blocking import Product, product_of
from prunus.tensix.validation.chips import chip_of, spec_text
from prunus.tensix.validation.rows import Cells, Row

__all__ = ["Prediction", "null_cycles", "predict", "predict_all"]

# What tells nothing about a chip but its peak: the two constants were fitted on n150.
NULL_START = 7500.0
NULL_SHARE = 0.82

_FAULTS = (ValueError, NotImplementedError, RuntimeError, OverflowError, TensixError)


@dataclass(frozen=True)
class Prediction:
    """What a row's program took, beside what was measured.

    Parameters
    ----------
    row : Row
        The row.
    group : str
        What it is counted with.
    cycles : float, optional
        Simulated cycles: of a product the mean over cores of the math thread's, else of the whole pattern.
        None if the row could not be run.
    measured : float, optional
        What the file says: cycles, and of DRAM bytes a cycle.
    predicted : float, optional
        The same of the simulation.
    ideal : float, optional
        Cycles of a product at the matrix units' peak.
    extra : dict
        More that is told about the row.
    error : str
        Why it could not be run.
    """

    row: Row
    group: str = ""
    cycles: float | None = None
    measured: float | None = None
    predicted: float | None = None
    ideal: float | None = None
    extra: dict[str, Any] | None = None
    error: str = ""

    @property
    def relative_error(self) -> float | None:
        """Of what was predicted, as a share of what was measured; None where there is nothing to compare."""
        if self.measured is None or self.predicted is None:
            return None
        return self.predicted / self.measured - 1

    def record(self) -> dict[str, Any]:
        """Return the row and its prediction as JSON's values."""
        record: dict[str, Any] = {**self.row.identity(), "predicted_cycles": self.cycles}
        if self.row.kind == "dram":
            record["predicted_bytes_per_cycle"] = self.predicted
        record.update(self.extra or {})
        if self.measured is not None:
            name = "measured_bytes_per_cycle" if self.row.kind == "dram" else "measured_cycles"
            record[name] = self.measured
        if self.error:
            record["error"] = self.error
        return record


def null_cycles(ideal: float) -> float:
    """Return what the null model says of a product."""
    return NULL_START + ideal / NULL_SHARE


def predict(row: Row, stop: threading.Event | None = None) -> Prediction:
    """Run one row.

    Parameters
    ----------
    row : Row
        Of any kind.
    stop : threading.Event, optional
        Ends the run with a KeyboardInterrupt when it is set.

    Returns
    -------
    Prediction
        With `error` if the row cannot be run; whatever it asks for, this raises nothing but an interrupt.
    """
    try:
        return {"gemm": _gemm, "noc": _noc, "dram": _dram}[row.kind](row, stop)
    except _FAULTS as error:
        return Prediction(row, error=str(error) or type(error).__name__)


def _gemm(row: Row, stop: threading.Event | None) -> Prediction:
    cells = row.cells
    product = product_of(cells)
    measured = _measured_product(cells, product)
    run = _core.tensix_product(
        spec_text(product.chip),
        product.k,
        product.used,
        product.per_core,
        product.in0_block_w,
        product.out_block,
        product.out_subblock,
        product.format,
        product.fidelity,
        product.in0_sharded,
        product.out_sharded,
        product.packer_l1_acc,
        product.wide,
        stop,
    )
    return Prediction(
        row,
        group=f"{product.chip} {cells.text('dtype')} {product.fidelity}",
        cycles=run["math_cycles"],
        measured=measured,
        predicted=run["math_cycles"],
        ideal=product.ideal_cycles,
        extra=dict(product.blocking()),
    )


def _measured_product(cells: Cells, product: Product) -> float | None:
    cycles = cells.number("device_cycles_derived")
    if cycles is not None:
        return cycles
    share = cells.number("device_util_pct")
    return None if share is None else product.ideal_cycles / share * 100


def _noc(row: Row, stop: threading.Event | None) -> Prediction:
    cells = row.cells
    chip = chip_of(cells.text("device", ""), cells.text("arch", ""))
    memory = cells.text("memory", "L1")
    if memory.upper() != "L1":
        raise NotImplementedError(f"memory {memory!r}: traffic is simulated from L1 to L1")
    mechanism = cells.one_of("mechanism", ["UNICAST", "MULTICAST", "MULTICAST_LINKED"])
    pattern = cells.text("pattern").upper()
    measured = cells.number("latency_cycles")
    run = _core.tensix_traffic(
        spec_text(chip),
        pattern,
        mechanism != "UNICAST",
        cells.whole("num_transactions"),
        cells.whole("num_subordinates", 0, least=0),
        cells.yes("same_axis", False),
        cells.yes("stateful", False),
        cells.yes("loopback", False),
        int(cells.one_of("noc", ["0", "1", "NOC_0", "NOC_1"], "0")[-1]),
        cells.whole("transaction_bytes"),
        mechanism == "MULTICAST_LINKED",
        stop,
    )
    group = f"{cells.text('arch', '') or chip} {mechanism} {pattern}"
    return Prediction(row, group, run["cycles"], measured, run["cycles"])


def _dram(row: Row, stop: threading.Event | None) -> Prediction:
    cells = row.cells
    chip = chip_of(cells.text("device", ""), cells.text("arch", ""))
    placement = cells.one_of("placement", ["one_channel", "spread"])
    direction = cells.one_of("direction", ["read", "write"])
    cores, transactions = cells.whole("num_readers"), cells.whole("num_tx")
    size = cells.whole("tx_bytes")
    measured = cells.number("agg_bytes_per_cycle")
    run = _core.tensix_dram(
        spec_text(chip),
        placement == "one_channel",
        direction == "write",
        cores,
        transactions,
        size,
        stop,
    )
    group = f"{cells.text('arch', '') or chip} {placement} {direction}"
    rate = cores * transactions * size / run["cycles"]
    return Prediction(row, group, run["cycles"], measured, rate)


def _work(row: Row) -> float:
    """Guess which rows take long, so that none of these is begun last."""
    try:
        if row.kind == "gemm":
            return float(row.cells.whole("m") * row.cells.whole("k") * row.cells.whole("n"))
        if row.kind == "dram":
            return float(row.cells.whole("num_readers") * row.cells.whole("num_tx"))
        return float(row.cells.whole("num_transactions")) * (1e3 if "ALL" in row.cells.text("pattern") else 1)
    except ValueError:
        return 0.0


def predict_all(
    rows: Sequence[Row], threads: int, step: Callable[[Prediction], object] | None = None
) -> list[Prediction]:
    """Run rows on threads.

    Parameters
    ----------
    rows : sequence of Row
        Of any kinds.
    threads : int
        How many run at once. Predictions do not depend on it.
    step : callable, optional
        Called in the calling thread with each prediction when it is there.

    Returns
    -------
    list of Prediction
        In the order of `rows`.
    """
    stop = threading.Event()
    order = sorted(range(len(rows)), key=lambda i: (-_work(rows[i]), i))
    futures: dict[int, Future[Prediction]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="tensix") as pool:
        try:
            for i in order:
                futures[i] = pool.submit(predict, rows[i], stop)
            for done in as_completed(futures.values()):
                if step is not None:
                    step(done.result())
        except BaseException:
            # Signals reach this thread alone: the others are told.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [futures[i].result() for i in range(len(rows))]
