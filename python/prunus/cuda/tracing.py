"""Spans of operations on a GPU: timed by its own clock, which is read when somebody looks at the trace."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from prunus._trace import Span, is_traced, span
from prunus.cuda.runtime import Place, is_captured, on
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["blocks_in", "traced"]


class _Timed(Span):
    """A span between two events of the current stream."""

    __slots__ = ("_begin", "_end", "_where")

    def __init__(self, of: Span, where: Place) -> None:
        super().__init__(of._trace, of._record.name, of._record.depth)
        self._where = where
        events = libraries().torch.cuda.Event
        self._begin, self._end = events(enable_timing=True), events(enable_timing=True)

    def __enter__(self) -> Self:
        super().__enter__()
        with on(self._where):
            self._begin.record()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with on(self._where):
            self._end.record()
        begin, end = self._begin, self._end

        def seconds() -> dict[str, float]:
            end.synchronize()
            return {"seconds": begin.elapsed_time(end) * 1e-3}

        self.later(seconds)
        super().__exit__(kind, error, trace)


def traced(name: str, where: Place) -> Span:
    """Return a context manager that times and counts an operation on a GPU, if anybody traces."""
    at = span(name)
    if not at:
        return at
    at.ran(str(where))
    if where.device.type != "cuda" or is_captured(where):
        return at  # the host does the work, or nobody yet
    timed = _Timed(at, where)
    timed.ran(str(where))
    return timed


def blocks_in(indptr: torch.Tensor) -> Any:
    """Return how many blocks a pattern has, kept for when somebody asks: (members,) or a single one."""
    assert is_traced()
    return indptr[..., -1].clone()
