"""Tables of a comparison, for people."""

import statistics
from collections.abc import Callable, Sequence

from prunus._table import format_table
from prunus.bench.paging.figures import estimate
from prunus.bench.paging.rounds import Outcome
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.setup import Target

__all__ = ["EXPLANATION", "report", "summary"]

EXPLANATION = """\
Each run is a fresh process with a cold cache; rates are medians in GB/s of bytes that the caller used;
"depth" is the mean number of requests in flight; CPU is the time of all threads and of the kernel, in
microseconds for each unit; "moved" is bytes read and written for each byte used; "calls" are system calls
for I/O; "MiB" is the peak of resident memory less that at the start and less results that the caller holds;
"cache" is what the page cache keeps of the file. Ratios are medians of pairs that ran next to each other,
with the interval that covers the true median in nine of ten cases. prunus reads another file beforehand, so
that its memory is in use ("first call" does not)."""

_NONE = "-"
_ALLOWANCE = 64.0  # MiB
_CACHED = 0.01


def _median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return float(statistics.median(value(sample) for sample in samples))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(outcome: Outcome) -> str:
    names = [c.name for c in outcome.case.contestants if c.name in outcome.found]
    if not names:
        return "nothing was measured"
    ours = {c.name for c in outcome.case.contestants if c.ours}
    head = ["", "runs", "GB/s", "depth", f"CPU us/{outcome.case.unit}", "moved", "requests", "calls"]
    head += ["MiB", "cache", "engine"]
    rows = []
    for name in names:
        samples = outcome.found[name]
        depth = _median(samples, lambda s: s.depth)
        cpu = _median(samples, lambda s: s.cpu_per_block)
        requests, calls = (_median(samples, value) for value in (lambda s: s.requests, lambda s: s.calls))
        memory = max(sample.memory for sample in samples)
        rows.append(
            [
                name,
                str(len(samples)),
                f"{_median(samples, lambda s: s.rate) / 1e9:.3f}",
                f"{depth:.1f}" if depth else _NONE,
                _number(cpu * 1e6) if cpu else _NONE,
                f"{_median(samples, lambda s: s.amplification):.3f}",
                _number(requests) if requests else _NONE,
                _number(calls) if calls else _NONE,
                _number(memory / (1 << 20)) if memory or name in ours else _NONE,
                f"{max(sample.cached for sample in samples):.1%}",
                samples[0].engine or _NONE,
            ]
        )
    return format_table(head, rows)


def _common(outcome: Outcome, budget: int) -> list[Target]:
    """Return what every case of prunus is held to."""
    names = [c.name for c in outcome.case.contestants if c.ours and c.name in outcome.found]
    if not names:
        return []
    room = budget if outcome.case.budget is None else outcome.case.budget

    def most(value: Callable[[Sample], float]) -> Callable[[object], list[float]]:
        return lambda _: [max(value(s) for name in names for s in outcome.found[name])]

    return [
        Target(
            "memory over budget, MiB (largest)",
            most(lambda s: (s.memory - room) / (1 << 20)),
            _ALLOWANCE,
            False,
        ),
        Target("share of the file in the page cache (largest)", most(lambda s: s.cached), _CACHED, False),
    ]


def verdicts(outcome: Outcome, budget: int) -> list[tuple[str, ...]]:
    """Hold what was found against the targets.

    Returns
    -------
    list of tuple of str
        What is measured, what was found, its interval, the target and "ok", "MISSED" or why it is not known.
    """
    rows: list[tuple[str, ...]] = []
    for target in (*outcome.case.targets, *_common(outcome, budget)):
        wanted = f"{'>=' if target.at_least else '<='} {target.limit:.3g}"
        try:
            values = target.values(outcome.found)
        except KeyError as error:
            rows.append((target.what, _NONE, _NONE, wanted, f"not measured: no {error.args[0]}"))
            continue
        found = estimate(values)
        interval = f"{found.low:.3g} .. {found.high:.3g}" if found.count > 1 else _NONE
        verdict = "ok" if target.reached(found.median) else "MISSED"
        rows.append((target.what, f"{found.median:.3g}", interval, wanted, verdict))
    return rows


def report(outcome: Outcome, budget: int) -> str:
    """Make the tables of one case.

    Parameters
    ----------
    outcome : Outcome
        What was found.
    budget : int
        Bytes that the pager was allowed.

    Returns
    -------
    str
        The runs, who took no part, and the targets.
    """
    parts = [f"{outcome.case.name}: {outcome.case.title}", _table(outcome)]
    parts += [f"left out: {name}: {why}" for name, why in outcome.missing.items()]
    extra = [
        f"{name}: {key} {', '.join(f'{value:.3g}' for value in values)}"
        for name, samples in outcome.found.items()
        for key, values in samples[0].series.items()
        if key != "total"
    ]
    rows = [list(row) for row in verdicts(outcome, budget)]
    if rows:
        parts += ["", format_table(["target", "found", "interval", "wanted", ""], rows)]
    return "\n".join(parts[:2] + extra + parts[2:])


def summary(outcomes: Sequence[Outcome], budget: int) -> str:
    """Count what was reached and name what was not."""
    rows = [(outcome.case.name, *row) for outcome in outcomes for row in verdicts(outcome, budget)]
    missed = [row for row in rows if row[-1] == "MISSED"]
    unknown = [row for row in rows if row[-1] not in ("ok", "MISSED")]
    lines = [f"{len(rows) - len(missed) - len(unknown)} of {len(rows)} targets reached"]
    lines += [
        f"MISSED: {case}: {what}: {found}, wanted {wanted}" for case, what, found, _, wanted, _ in missed
    ]
    lines += [f"{case}: {what}: {why}" for case, what, _, _, _, why in unknown]
    return "\n".join(lines)
