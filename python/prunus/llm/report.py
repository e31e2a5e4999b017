"""What a generation took, as a table."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prunus import _core
from prunus._format import size_text
from prunus._table import format_table
from prunus.llm.generation import Usage

if TYPE_CHECKING:
    from prunus.llm.model import Model

__all__ = ["Memory", "disk_rate", "reading_note", "usage_table"]

_STATUS: Final = Path("/proc/self/status")
# A share of units, or of bytes, from which on too little is left out to speak of.
_MANY: Final = 0.95
_BLOCK, _SECTOR, _DEPTH, _SECONDS = 1 << 20, 4096, 16, 0.3


class Memory:
    """The peak of resident memory above what there was when this was made.

    Attributes
    ----------
    start : int, optional
        Resident bytes then; None where the system does not tell.
    """

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError):  # forget the peak so far: importing takes more than what stays
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.start = _resident("VmRSS")

    @property
    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        now = _resident("VmHWM")
        return None if now is None or self.start is None else max(now - self.start, 0)


def _resident(name: str) -> int | None:
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def disk_rate(path: str) -> float:
    """Measure how many bytes a second the drive under a file gives, read in order by large blocks.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    block = max(min(_BLOCK, Path(path).stat().st_size // _SECTOR * _SECTOR), 1)
    found = _core.measure_io(path, None, ["sequential read"], [block], [_DEPTH], _SECONDS)
    return max(float(rate) for _, _, _, _, rate, *_ in found)


def usage_table(model: Model, usage: Usage, memory: Memory | None = None) -> str:
    """Return a short table of what a generation took.

    Parameters
    ----------
    model : Model
        Which one generated.
    usage : Usage
        What it took.
    memory : Memory, optional
        Made before the model was opened.
    """
    rows = [
        ["prompt", f"{usage.prompt_tokens} tokens in {usage.prompt_seconds:.2f} s"],
        ["generated", f"{usage.tokens} tokens, {usage.tokens_per_second:.1f} tokens/s"],
        ["live hidden units", f"{usage.live_fraction:.1%}"],
    ]
    weights, pager = model.weights, model.pager
    if pager is not None and weights.file is not None:
        rate, each = disk_rate(weights.file.files[0]), usage.bytes_per_step
        pages = usage.hits + usage.misses
        rows += [
            ["weights of a token", f"{size_text(weights.nbytes)}, budget {size_text(pager.budget)}"],
            ["read from disk", f"{size_text(int(each))} a step"],
            ["drive in use", f"{_share(each * usage.steps, usage.seconds * rate)} of {rate * 1e-9:.2f} GB/s"],
            ["found in memory", f"{_share(usage.hits, pages)} of pages"],
        ]
    else:
        rows.append(["weights of a token", f"{size_text(weights.nbytes)}, all in memory"])
    peak = None if memory is None else memory.peak
    if peak is not None:
        rows.append(["peak memory", f"{size_text(peak)} above the interpreter"])
    return format_table(["", ""], rows, left=2).lstrip("\n")


def reading_note(model: Model, usage: Usage) -> str | None:
    """Return a line for where units were left out and as much was read as without; None elsewhere."""
    weights, pager = model.weights, model.pager
    if pager is None or not usage.bytes_io or usage.live_fraction > _MANY:
        return None
    # What does not fit is read for each token, were nothing pruned.
    dense = weights.nbytes - pager.budget
    if dense <= 0 or usage.bytes_per_step < _MANY * dense:
        return None
    layer = weights.layers[0].ffn
    panel = 0 if layer.decide == "predictor" else layer.features * layer.dtype.itemsize
    each = layer.nbytes // max(layer.hidden, 1) - panel  # of what is read for live units only
    if each >= _SECTOR:
        return None
    return (
        f"leaving units out saved arithmetic, not reading: only {size_text(each)} are read for one, and most "
        f"pages of {size_text(_SECTOR)} hold some of a unit that takes part"
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"
