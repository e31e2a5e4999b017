"""The page that says what was last run on which GPU, when, with which versions: made from runs' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunus.bench.gpu.files import ENDING, read
from prunus.bench.gpu.record import Machine, Row, races
from prunus.bench.gpu.report import summary
from prunus.bench.gpu.targets import ceilings_of, targets

__all__ = ["page", "runs"]

_HEAD = """\
# What was last run on a GPU

<!-- Made by `python benches/gpu.py --docs` from the files in benches/results; do not edit it by hand. -->

The figures of the CUDA engine come from [`benches/gpu.py`](../benches/gpu.py), one run of less than ten
minutes, which writes a CSV file and a plot to [`benches/results`](../benches/results) and makes this page
anew. Each result is checked before it is timed, on random values; times are the device's, with cold caches.
"""

_NONE = """\
**No run is recorded: no GPU was at hand yet.** No kernel of the engine has run on one. How fast it is there
is open, and so is every figure that it aims at. What stands without a GPU:

- **The interpreter's results**: kernels run in Triton's interpreter on the CPU, in the same suite that the
  CPU engine passes, against NumPy: `TRITON_INTERPRET=1 pytest tests/engines tests/cuda`.
- **The compile table**: configurations that ship are compiled ahead of time for sm_80, sm_90 and sm_100,
  with their shared memory, registers, spills and matrix instructions: `python -m prunus cuda compile`.
- **The script**: every section of it runs in the interpreter at tiny sizes, where it checks results and times
  nothing that counts: `tests/cuda/test_bench.py`.

None of them says anything of speed. On a machine with a GPU, `python benches/gpu.py` in a clone fills this
page.
"""

_AIMS = """\
What is aimed at, by the least or the worst of all races of a kind:

| aim | limit |
| --- | ---: |
"""


def runs(folder: Path) -> list[tuple[Path, Machine, list[Row]]]:
    """Return all runs in a folder, the latest first; of one GPU the latest alone counts for the page.

    Raises
    ------
    ValueError, OSError
        If a file cannot be read.
    """
    found = [(path, *read(path)) for path in sorted(folder.glob(f"*{ENDING}"))]
    return sorted(found, key=lambda run: run[1].date, reverse=True)


def page(folder: Path) -> str:
    """Return the page for the runs in a folder.

    Raises
    ------
    ValueError, OSError
        If a file cannot be read.
    """
    found = runs(folder)
    if not found:
        return f"{_HEAD}\n{_NONE}\n{_AIMS}{_aims()}"
    parts, seen = [_HEAD], set()
    for path, machine, rows in found:
        if machine.gpu not in seen:
            parts.append(_run(path, machine, rows))
        seen.add(machine.gpu)
    return "\n".join(parts)


def _aims() -> str:
    lines = []
    for target in targets([]):
        sign = "<" if target.below else ">="
        lines.append(f"| {target.what} | {sign} {target.limit:g} |")
    return "\n".join(lines) + "\n"


def _run(path: Path, machine: Machine, rows: Sequence[Row]) -> str:
    """Tell of one run."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [f"## {machine.gpu}, {machine.date}", "", f"- versions: {versions}"]
    if machine.options:
        lines.append(f"- called with: `{machine.options}`")
    lines.append(f"- rows: {summary(rows)}")
    ceilings = ceilings_of(rows)
    if ceilings is not None:
        copy, product = ceilings.nbytes * 1e-12, ceilings.flops * 1e-12
        lines.append(f"- ceilings: copy {copy:.2f} TB/s, dense product {product:.0f} TFLOP/s")
    plot = path.with_suffix(".png")
    files = [path, plot] if plot.exists() else [path]
    lines.append("- files: " + ", ".join(f"[{file.name}](../benches/results/{file.name})" for file in files))
    lines += [
        "",
        "| aim | limit | worst | | races | worst race |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    words = {True: "reached", False: "**missed**", None: "not measured"}
    for target in targets(rows):
        sign = "<" if target.below else ">="
        worst = "" if target.worst is None else f"{target.worst:.2f}"
        cells = [target.what, f"{sign} {target.limit:g}", worst, words[target.reached], str(target.count)]
        lines.append("| " + " | ".join([*cells, target.where]) + " |")
    wrong = [row for row in rows if row.kind == "ours" and row.state in ("wrong", "failed")]
    if wrong:
        lines += ["", "Of prunus, these were wrong or failed, and were not timed:", ""]
        lines += [f"- {row.case.section}, {row.case.name}, {row.contestant}: {row.note}" for row in wrong]
    skipped = [race.case for race in races(rows) if any(row.state == "skipped" for row in race.rows)]
    if skipped:
        sections = ", ".join(dict.fromkeys(case.section for case in skipped))
        lines += ["", f"The time was up before {len(skipped)} races of these sections: {sections}."]
    return "\n".join(lines) + "\n"
