"""Plans: what calls read is recorded once, and fetched ahead of the same calls when they come again.

A plan is the list of runs and places that were read, in order. Following it, the pager is asked for what
comes next, up to a tenth of its budget ahead of what is being read, which is what the pool sets aside for
that. A plan that does not fit what happens is left: it costs reads that nobody needed, never a wrong value.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from prunus._dtypes import Array

__all__ = ["ACTIVE", "Following", "Plan", "Session", "follow", "record"]

# Steps and places after which a plan takes no more: some ten megabytes.
_STEPS: Final = 1 << 16
_PLACES: Final = 1 << 20
# Steps that may have been left out, and that may be new in a row, before a plan counts as another one's.
_SKIP: Final = 16
_STRAY: Final = 64
_SHARE: Final = 10  # as of the pool's frames are kept for what is read ahead

Key = tuple[bytes, int]


class Step(NamedTuple):
    """Something that was read: places of one size each, or a run of bytes.

    Attributes
    ----------
    key : tuple
        The file's path, and where the array's bytes begin.
    offsets : ndarray of int64, optional
        Places from there on; None for a run.
    begin, end : int
        The run.
    size : int
        Bytes of a place.
    """

    key: Key
    offsets: Array | None
    begin: int
    end: int
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return self.end - self.begin if self.offsets is None else len(self.offsets) * self.size

    def like(self, other: Step) -> bool:
        """Say whether two steps are of the same call: places differ where liveness does."""
        same = (
            self.key == other.key
            and self.size == other.size
            and (self.begin, self.end) == (other.begin, other.end)
        )
        return same and (self.offsets is None) == (other.offsets is None)


class Plan:
    """What was read between two moments; made by :func:`record`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._segments: dict[Key, Any] = {}
        self._windows: dict[Key, int] = {}
        self._places = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes that the steps read, were nothing in memory."""
        return sum(step.nbytes for step in self.steps)

    def __repr__(self) -> str:
        from prunus._format import size_text

        return f"<prunus.paged.Plan of {len(self)} reads, {size_text(self.nbytes)}>"

    def _add(self, step: Step) -> None:
        places = 0 if step.offsets is None else len(step.offsets)
        if len(self.steps) < _STEPS and self._places + places <= _PLACES:
            self.steps.append(step)
            self._places += places


class Session:
    """What is told of every read in a context: a context manager.

    Parameters
    ----------
    plan : Plan
        What is recorded, or followed.
    pager : Pager, optional
        Only its arrays; None: all.
    """

    def __init__(self, plan: Plan, pager: Any = None) -> None:
        self.plan, self.pager = plan, pager
        self._before = ACTIVE.get()
        ACTIVE.set(self)

    def watch(self, store: Any, segment: Any) -> Any:
        """Return the segment as readers of ``store`` are to see it."""
        if self.pager is not None and store.pager is not self.pager:
            return segment
        return _Watched(self, (bytes(store.file.path), int(store.start)), store, segment)

    def note(self, step: Step, store: Any, segment: Any) -> None:
        """Take note of a read that is about to begin."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop taking notes; what was asked for still comes."""
        if ACTIVE.get() is self:
            ACTIVE.set(self._before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


# The session that reads of the calling context are told to.
ACTIVE: Final[ContextVar[Session | None]] = ContextVar("prunus_plan", default=None)


class Recording(Session):
    """Notes what is read; as a context manager it gives the plan."""

    def note(self, step: Step, store: Any, segment: Any) -> None:
        """Add the read to the plan."""
        self.plan._segments[step.key] = segment
        self.plan._windows[step.key] = int(store.pager.budget) // _SHARE
        self.plan._add(step)

    def __enter__(self) -> Plan:
        return self.plan


class Following(Session):
    """Fetches what a plan says comes next; ends with the plan, or where what happens is something else."""

    def __init__(self, plan: Plan, pager: Any = None) -> None:
        super().__init__(plan, pager)
        self._at = 0  # the step that is expected next
        self._told = 0  # the first step that the pager was not asked for
        self._stray = 0
        self._segments, self._windows = dict(plan._segments), dict(plan._windows)
        self._ask()

    def __enter__(self) -> Self:
        return self

    def note(self, step: Step, store: Any, segment: Any) -> None:
        """Find the read in the plan, and ask for those after it."""
        self._segments[step.key] = segment
        self._windows[step.key] = int(store.pager.budget) // _SHARE
        steps = self.plan.steps
        for at in range(self._at, min(self._at + _SKIP, len(steps))):
            if steps[at].like(step):
                self._at, self._stray = at + 1, 0
                break
        else:
            self._stray += 1
        if self._stray > _STRAY or self._at >= len(steps):
            self.stop()
        else:
            self._ask()

    def _ask(self) -> None:
        steps = self.plan.steps
        self._told = max(self._told, self._at)
        ahead = sum(step.nbytes for step in steps[self._at : self._told])
        while self._told < len(steps):
            step = steps[self._told]
            segment = self._segments.get(step.key)
            window = self._windows.get(step.key, 0)
            if ahead >= window:
                return
            if segment is not None:
                # A file that was closed since is opened again by the call, or is an error there.
                with contextlib.suppress(OSError, ValueError):
                    _prefetch(segment, step, window - ahead)
            ahead += step.nbytes
            self._told += 1


def _prefetch(segment: Any, step: Step, most: int) -> None:
    """Ask for at most so many bytes of a step."""
    if step.offsets is not None:
        segment.prefetch(step.offsets[: max(most // max(step.size, 1), 1)], step.size)
        return
    end, page = min(step.end, step.begin + most), int(segment.page)
    whole = np.arange(step.begin, end - page + 1, page, dtype=np.int64)
    if len(whole):
        segment.prefetch(whole, page)
    rest = step.begin + len(whole) * page
    if rest < end:
        segment.prefetch(np.array([rest], np.int64), end - rest)


class _Watched:
    """A segment that tells a session what is read from it."""

    __slots__ = ("_key", "_segment", "_session", "_store")

    def __init__(self, session: Session, key: Key, store: Any, segment: Any) -> None:
        self._session, self._key, self._store, self._segment = session, key, store, segment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segment, name)

    def gather(self, offsets: Array, size: int, out: Array) -> None:
        if len(offsets):
            step = Step(self._key, offsets.copy(), 0, 0, size)
            self._session.note(step, self._store, self._segment)
        self._segment.gather(offsets, size, out)

    def reader(self, begin: int, end: int, panel: int) -> Any:
        if end > begin:
            self._session.note(Step(self._key, None, begin, end, 0), self._store, self._segment)
        return self._segment.reader(begin, end, panel)


def _raw(pager: Any) -> Any:
    return getattr(pager, "_pager", pager)


def record(pager: Any = None) -> Recording:
    """Record what is read from arrays on disk until the ``with`` block ends.

    Parameters
    ----------
    pager : Pager, optional
        Only what its arrays read; without it, all.

    Returns
    -------
    context manager
        Which gives the :class:`Plan`.

    Examples
    --------
    >>> import prunus as pr
    >>> with pr.paged.record() as plan:
    ...     pass  # a forward pass
    >>> with pr.paged.follow(plan):
    ...     pass  # the next one
    >>> len(plan)
    0
    """
    return Recording(Plan(), _raw(pager))


def follow(plan: Plan, pager: Any = None) -> Following:
    """Fetch what a plan says comes next while the same calls run again.

    Parameters
    ----------
    plan : Plan
        From :func:`record`.
    pager : Pager, optional
        The pager whose arrays are read.

    Returns
    -------
    context manager
        It begins at once and ends by itself where the plan ends, or with the ``with`` block.

    Raises
    ------
    TypeError
        If ``plan`` is none.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"follow takes a Plan that record() made, got {type(plan).__name__}")
    return Following(plan, _raw(pager))
