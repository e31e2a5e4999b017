"""A progress bar for long work, shown on a terminal only."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

__all__ = ["Progress"]

_BAR = 24


class Progress:
    """One line on a terminal that tells how far a job has come.

    The line goes to standard error, so that a command's result can be piped; where standard error is
    not a terminal nothing is written at all.

    Parameters
    ----------
    total : int
        Number of steps of the whole job.
    label : str
        What is going on, shown before the bar.
    stream : file object, optional
        Where to write; standard error if not given.

    Examples
    --------
    >>> with Progress(2, "work") as bar:
    ...     bar.step("first half")
    ...     bar.step("second half")
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._total = max(total, 1)
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._done = 0
        self._width = 0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        self._draw("")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def step(self, what: str = "", count: int = 1) -> None:
        """Count `count` steps as done; `what` names the last one."""
        self._done = min(self._done + count, self._total)
        self._draw(what)

    def note(self, text: str) -> None:
        """Write a line that stays above the bar (only on a terminal)."""
        if self._shown:
            self.clear()
            self._stream.write(text + "\n")
            self._draw("")

    def clear(self) -> None:
        """Take the bar off the terminal."""
        if self._shown and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def _draw(self, what: str) -> None:
        if not self._shown:
            return
        share = self._done / self._total
        filled = round(share * _BAR)
        elapsed = time.monotonic() - self._start
        bar = "#" * filled + "." * (_BAR - filled)
        text = f"{self._label} [{bar}] {100 * share:3.0f} % {elapsed:4.0f} s {what}"
        # What is shorter than the line before it must overwrite the whole of that line.
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
