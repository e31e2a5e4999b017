"""What the sections of ``bench llm`` share: the model, sizes, and the drive's own rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prunus.bench.paging import fio
from prunus.bench.paging.data import Data, drop
from prunus.bench.paging.setup import find_rater
from prunus.llm.report import disk_rate

__all__ = ["Drive", "Plan"]

# Smaller files are measured by the package's own probe.
_LEAST = 16 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison.

    Attributes
    ----------
    source : Path
        The model as it came: a GGUF file, a Hugging Face folder, or a packed model.
    packed : Path
        It in the layout for the disk, decided by "up".
    folder : Path
        A temporary folder on the drive that is measured.
    budget : int
        Bytes of memory for weights.
    rounds : int
        Turns of each contestant.
    tokens : int
        Tokens that each turn generates.
    judged, calibrated : int
        Tokens of the text that is judged, and of the one that calibrates.
    prompt : str
        What texts begin with.
    say : callable
        Told of what is left out, and why.
    """

    source: Path
    packed: Path
    folder: Path
    budget: int
    rounds: int
    tokens: int
    judged: int
    calibrated: int
    prompt: str
    say: Callable[[str], None]


class Drive:
    """The rate at which a drive gives a file from front to back, by fio or by the project's own probe."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        size = path.stat().st_size
        self._path, self.by = str(path), "probe"
        self._job: fio.Job | None = None
        if size < _LEAST:  # over before a job of the others would have begun
            return
        self._rater, self.by, note = find_rater(Data(str(path), size, 0.0))
        if note:
            say(note)
        job = fio.best_sequential(self._rater, str(path), size, min(size, 1 << 28))
        self._job = replace(job, amount=min(job.amount, 1 << 30))

    def rate(self) -> float:
        """Measure it: bytes a second."""
        drop([self._path])
        if self._job is None:
            return disk_rate(self._path)
        return self._rater(self._job).rate
