"""Decoding within a budget: beside what bounds it, and beside memory maps that have as much memory."""

import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any

from prunus._progress import Progress
from prunus.bench.llm import mapped
from prunus.bench.llm.found import Section, Verdict
from prunus.bench.llm.plan import Drive, Plan
from prunus.bench.llm.worker import WorkerError, work
from prunus.bench.paging.data import cached, drop
from prunus.bench.paging.limits import NoLimitError, limited

__all__ = ["bound", "maps"]

_MIB = 1 << 20
# What may be resident beside the budget: buffers of one step, the cache of keys and values, the tokenizer.
_ALLOWANCE = 150e6 / _MIB


def _asked(plan: Plan, **more: Any) -> dict[str, Any]:
    common = {"model": str(plan.packed), "prompt": plan.prompt, "tokens": plan.tokens}
    return {**common, "chat": False, "endless": True, **more}


def _each(found: dict[str, Any]) -> float:
    return float(found["seconds"]) / max(int(found["steps"]), 1)


def bound(plan: Plan) -> Section:
    """Hold decoding against the larger of its bytes over the drive's rate and its time in memory."""
    drive = Drive(plan.packed, plan.say)
    path = str(plan.packed)
    rates, disk, memory, grown = [], [], [], []
    with Progress(plan.rounds * 2 * plan.tokens, "decode") as bar:
        for number in range(plan.rounds):
            rates.append(drive.rate())
            drop([path])
            before, size = cached([path])
            label = f"round {number + 1}"
            disk.append(work("generate", _asked(plan, budget=plan.budget), told=partial(bar.step, label)))
            grown.append(max(cached([path])[0] - before, 0) / size)
            memory.append(work("generate", _asked(plan), told=partial(bar.step, label)))
    reads = [found["bytes_io"] / max(found["steps"], 1) for found in disk]
    bounds = [max(r / rate, _each(m)) for r, rate, m in zip(reads, rates, memory, strict=True)]
    ratios = [_each(found) / most for found, most in zip(disk, bounds, strict=True)]
    median = statistics.median
    rows = [
        [f"the drive, by {drive.by}", f"{median(rates) * 1e-9:.2f} GB/s", "", ""],
        [
            "within the budget",
            f"{1 / median(map(_each, disk)):.1f} tokens/s",
            f"{median(reads) / _MIB:.1f} MiB",
            f"{max(found['peak'] for found in disk) / _MIB:.0f} MiB",
        ],
        [
            "in memory",
            f"{1 / median(map(_each, memory)):.1f} tokens/s",
            "",
            f"{max(found['peak'] for found in memory) / _MIB:.0f} MiB",
        ],
        ["the bound", f"{1 / median(bounds):.1f} tokens/s", "", ""],
    ]
    peak = [(max(found["peak"] for found in disk) - plan.budget) / _MIB]
    return Section(
        "decode",
        f"{plan.packed.name}, budget {plan.budget / _MIB:g} MiB, {plan.tokens} tokens, {plan.rounds} rounds",
        ["", "rate", "read/token", "peak memory"],
        rows,
        [
            Verdict("time of a token / its bound", ratios, 1.3, False),
            Verdict("peak memory over the budget, MiB", peak, _ALLOWANCE, False),
            Verdict("share of the file in the page cache", [max(grown)], 0.01, False),
        ],
    )


def maps(plan: Plan) -> Section:
    """Hold decoding against memory maps of the same file, held to the memory that it took."""
    path = str(plan.packed)
    ours: list[dict[str, Any]] = []
    theirs: dict[str, list[dict[str, Any]]] = {advice: [] for advice in mapped.ADVICE}
    why = ""
    drop([path])
    first = work("generate", _asked(plan, budget=plan.budget))
    allowed = int(first["base"]) + int(first["peak"])
    with ExitStack() as stack, Progress(plan.rounds * (1 + len(theirs)) * plan.tokens, "memmap") as bar:
        group = None
        try:
            group = stack.enter_context(limited(allowed))
        except NoLimitError as error:
            why = str(error)
            plan.say(why)
        for number in range(plan.rounds if group is not None else 1):
            label = f"round {number + 1}"
            drop([path])
            ours.append(work("generate", _asked(plan, budget=plan.budget), told=partial(bar.step, label)))
            for advice in mapped.ADVICE if group is not None else ():
                drop([path])
                try:
                    theirs[advice].append(
                        work(
                            "generate",
                            _asked(plan, map=advice),
                            group=group,
                            told=partial(bar.step, label),
                        )
                    )
                except WorkerError as error:  # killed, for instance
                    why = f"{advice}: {error}"
                    plan.say(why)
        drop([path])
    rounds = [[_each(found[i]) for found in theirs.values() if i < len(found)] for i in range(len(ours))]
    gains = [min(times) / _each(found) for found, times in zip(ours, rounds, strict=True) if times]
    rows = [["prunus", f"{1 / statistics.median(map(_each, ours)):.1f}"]]
    rows += [
        [f"memmap, {advice}", f"{1 / statistics.median(map(_each, found)):.1f}"]
        for advice, found in theirs.items()
        if found
    ]
    return Section(
        "memmap",
        f"dense, all held to {allowed / _MIB:.0f} MiB with the interpreter and the page cache",
        ["", "tokens/s"],
        rows,
        [Verdict("speed / the best memmap", gains, 1.2, why=why)],
    )
