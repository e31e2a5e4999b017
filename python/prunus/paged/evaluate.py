"""One pass over the files: tiles of an expression, computed by several threads, in the order of storage.

A *tile* is a box of about ``TILE`` values: small enough that what is computed from it stays in the cache.
Tiles depend on the shape alone, so results depend neither on the number of threads nor on the budget. A job
is some consecutive tiles; the bytes of what is stored in the pass's order arrive through a reader, in long
runs that the pager fetches ahead, and jobs are done by a pool while the next ones are read.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from prunus._dtypes import Array
from prunus._threads import get_num_threads
from prunus.paged.access import boxes
from prunus.paged.array import PagedArray
from prunus.paged.fused import Step, arrange, mask_of
from prunus.paged.graph import Call, Const, Leaf, Node, Pick
from prunus.paged.reading import check_file
from prunus.paged.store import LARGEST, SECTOR

__all__ = ["TILE", "Pass", "Tile", "natural"]

TILE = 1 << 16
_JOB: Final = 16  # tiles of a job, at most
_PRELOAD: Final = 8 << 20  # smaller operands on disk are loaded once

Box = tuple[slice, ...]
R = TypeVar("R")


class Tile(NamedTuple):
    """A box of the result's shape and the values of the roots there, each of the box's shape."""

    box: Box
    values: list[Array]


class Stream:
    """The bytes of one array, in order, in portions of any size."""

    def __init__(self, array: PagedArray, panel: int) -> None:
        begin = array._start
        if panel % SECTOR:  # the sectors that a panel begins and ends in are in its frame too
            panel = min(panel, LARGEST)
        self._reader = array._store.segment.reader(begin, begin + array.nbytes, panel)
        self._panel: Array = np.empty(0, np.uint8)
        self._at = 0

    def take(self, size: int) -> Array:
        """Return the next ``size`` bytes."""
        at = self._at
        if at + size <= len(self._panel):
            self._at += size
            return self._panel[at : at + size]
        out = np.empty(size, np.uint8)
        done = 0
        while done < size:
            if self._at == len(self._panel):
                self._panel, self._at = next(self._reader)[1], 0
            part = self._panel[self._at : self._at + size - done]
            if len(part) == size:
                self._at += size
                return part
            out[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return out

    def close(self) -> None:
        self._reader.close()


class _Source:
    """How the values of one leaf are had for a tile."""

    def __init__(self, array: PagedArray, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
        nd = len(shape)
        self.array = array
        self.leaf = array._expand(nd)
        self.own = tuple(self.leaf._perm.index(k) for k in range(nd))  # its axes as they are stored
        self.streamed = self._follows(shape, order)
        self.small = array.nbytes <= min(_PRELOAD, int(array.pager.budget) // 4)
        self.values: Array | None = None  # all of it, once it is loaded

    def _follows(self, shape: tuple[int, ...], order: tuple[int, ...]) -> bool:
        """Say whether a pass in this order meets the leaf's bytes one after the other."""
        mine = [axis for axis in self.own if self.leaf.shape[axis] != 1]
        theirs = [axis for axis in order if shape[axis] != 1]
        if mine == theirs:
            return True
        # Tiles that are runs of whole rows along the first axis: the axes after it may be in any order.
        rows = math.prod(shape[axis] for axis in theirs[1:])
        return bool(mine) and mine[0] == theirs[0] and rows <= TILE

    def sizes(self, box: Box) -> tuple[int, ...]:
        """Return the shape of the leaf's part in a box, in its own order of storage."""
        return tuple(1 if self.leaf.shape[a] == 1 else box[a].stop - box[a].start for a in self.own)

    def nbytes(self, box: Box) -> int:
        return math.prod(self.sizes(box)) * self.leaf.itemsize

    def of_bytes(self, raw: Array, box: Box) -> Array:
        return raw.view(self.leaf.dtype).reshape(self.sizes(box)).transpose(self.leaf._perm)

    def of_box(self, box: Box) -> Array:
        key = _clip(self.array.shape, box)
        return self.array[key] if self.values is None else self.values[key]


def _clip(shape: tuple[int, ...], box: Box) -> Box:
    """Return the part of a box that an operand of ``shape`` has in a broadcast."""
    own = box[len(box) - len(shape) :]
    return tuple(slice(0, 1) if n == 1 else part for n, part in zip(shape, own, strict=True))


def natural(arrays: Sequence[PagedArray], ndim: int) -> tuple[int, ...]:
    """Return the axes, slowest first, as the largest of some arrays has them; they broadcast to ``ndim``."""
    if not arrays:
        return tuple(range(ndim))
    leaf = max(arrays, key=lambda a: a.nbytes)._expand(ndim)
    return tuple(leaf._perm.index(k) for k in range(ndim))


class Pass:
    """An evaluation of some expressions, all over one shape, in one reading of their sources.

    Parameters
    ----------
    roots : sequence of Node
        What is to be computed; they are broadcast together.
    order : tuple of int, optional
        The order of axes, slowest first, in which tiles come; that of the largest source by default.
    preload : sequence of PagedArray
        Sources that are loaded before anything else is done.
    """

    def __init__(
        self, roots: Sequence[Node], order: tuple[int, ...] | None = None, preload: Iterable[PagedArray] = ()
    ) -> None:
        self.shape = np.broadcast_shapes(*(root.shape for root in roots))
        self.target: Array | None = None  # where the values of the only root go
        self._steps: list[Step] = []
        self._slots: dict[Any, int] = {}
        self._leaves: list[tuple[int, PagedArray]] = []
        self._consts: list[tuple[int, Any]] = []
        self._count = 0
        self._keep = list(roots)
        self._roots = [self._compile(root) for root in roots]
        if order is None:
            order = natural([a for _, a in self._leaves], len(self.shape))
        self.order = order
        self._program = arrange(self._steps, self._roots, self.shape)
        self._sources = [(slot, _Source(a, self.shape, order)) for slot, a in self._leaves]
        early = {id(a) for a in preload}
        for _, source in self._sources:
            if id(source.array) in early or (not source.streamed and source.small):
                source.streamed, source.values = False, source.array.load()

    # Compiling -----------------------------------------------------------------------------------------

    def _compile(self, root: Node) -> int:
        """Give every node below ``root`` a slot, each once, without recursion: chains may be long."""
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            key = node.key if isinstance(node, Leaf) else id(node)
            if key in self._slots:
                continue
            below: tuple[Node, ...] = ()
            if isinstance(node, Call):
                below = node.args
            elif isinstance(node, Pick):
                below = (node.call,)
            if below and not ready:
                stack.append((node, True))
                stack.extend((b, False) for b in reversed(below))
                continue
            slot = self._slots[key] = self._count
            self._count += 1
            if isinstance(node, Leaf):
                self._leaves.append((slot, node.array))
            elif isinstance(node, Const):
                self._consts.append((slot, node.value))
            elif isinstance(node, Call):
                args = tuple(self._slot(a) for a in node.args)
                self._steps.append(Step(node, node.func, slot, args, node.kwargs))
            elif isinstance(node, Pick):
                self._steps.append(Step(node, itemgetter(node.index), slot, (self._slot(node.call),), {}))
        return self._slot(root)

    def _slot(self, node: Node) -> int:
        return self._slots[node.key if isinstance(node, Leaf) else id(node)]

    # Running -------------------------------------------------------------------------------------------

    def _boxes(self) -> Iterator[Box]:
        """Cut the shape into tiles, in the pass's order."""
        back = [self.order.index(axis) for axis in range(len(self.shape))]
        for box in boxes(tuple(self.shape[axis] for axis in self.order), TILE):
            yield tuple(box[k] for k in back)

    def _tiles(self, job: list[Box], raws: list[Array], mask: int) -> Iterator[Tile]:
        """Compute the tiles of a job."""
        at = [0] * len(raws)
        back = [self.order.index(axis) for axis in range(len(self.shape))]
        for box in job:
            slots: list[Any] = [None] * self._count
            for slot, value in self._consts:
                slots[slot] = value[_clip(value.shape, box)] if np.ndim(value) else value
            stream = 0
            for slot, source in self._sources:
                if source.streamed:
                    size = source.nbytes(box)
                    slots[slot] = source.of_bytes(raws[stream][at[stream] : at[stream] + size], box)
                    at[stream] += size
                    stream += 1
                else:
                    slots[slot] = source.of_box(box)
            want = tuple(part.stop - part.start for part in box)
            stored = tuple(want[axis] for axis in self.order)
            key: Any = (*box, ...)  # with the Ellipsis one value stays an array
            placed: Array | None = None if self.target is None else self.target[key]
            for step in self._program:
                if isinstance(step, Step):
                    slots[step.to] = step.func(*[slots[a] for a in step.args], **step.kwargs)
                    continue
                outs = [
                    placed
                    if placed is not None and slot == self._roots[0] and placed.dtype == dtype
                    else np.empty(stored, dtype).transpose(back)
                    for slot, dtype in zip(step.outputs, step.dtypes, strict=True)
                ]
                step.run(slots, outs, mask)
            values = [self._fit(slots[root], want) for root in self._roots]
            if placed is not None and values[0] is not placed:
                placed[...] = values[0]
            yield Tile(box, values)

    @staticmethod
    def _fit(value: Any, shape: tuple[int, ...]) -> Array:
        array = np.asarray(value)
        return array if array.shape == shape else np.broadcast_to(array, shape)

    def run(self, work: Callable[[Iterator[Tile]], R], ordered: bool = True) -> Generator[R, None, None]:
        """Call ``work`` on the tiles of each job and yield what it returns, in the order of jobs.

        Close the generator where it is left early; threads and readers end then.
        """
        for array in {id(a._store): a for _, a in self._leaves}.values():
            check_file(array._store.file)
        cuts = self._boxes()
        first = next(cuts, None)
        if first is None:
            return
        cuts = itertools.chain([first], cuts)
        streamed = [source for _, source in self._sources if source.streamed]
        panel = min((s.array._store.panel(len(streamed)) for s in streamed), default=1 << 20)
        widest = max((s.nbytes(first) for s in streamed), default=TILE * 8)
        tiles = max(min(panel // max(widest, 1), _JOB), 1)
        # What jobs hold of the readers' panels stays below a quarter of the budget: readers need the rest.
        budget = min((int(s.array.pager.budget) for s in streamed), default=1 << 40)
        threads = get_num_threads()
        held = min(threads + 1, budget // (4 * panel * max(len(streamed), 1)))
        streams: list[Stream] = []
        settings = np.geterr()
        mask = mask_of(settings)

        def job(part: list[Box], raws: list[Array]) -> R:
            with np.errstate(**settings):
                return work(self._tiles(part, raws, mask))

        def jobs() -> Iterator[tuple[list[Box], list[Array]]]:
            while part := list(itertools.islice(cuts, tiles)):
                yield (
                    part,
                    [
                        stream.take(sum(source.nbytes(box) for box in part))
                        for stream, source in zip(streams, streamed, strict=True)
                    ],
                )

        try:
            for source in streamed:
                size = source.nbytes(first) * tiles
                streams.append(Stream(source.array, min(size, panel) if size else panel))
            if held < 2 or threads == 1 or math.prod(self.shape) <= TILE:
                for part, raws in jobs():
                    yield job(part, raws)
            else:
                yield from _in_order(job, jobs(), threads, held - 1)
        finally:
            for stream in streams:
                stream.close()


def _in_order(
    work: Callable[..., R], jobs: Iterator[tuple[Any, ...]], threads: int, most: int
) -> Iterator[R]:
    """Run jobs on a pool of threads and yield their results in order, ``most`` under way at a time."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prunus-paged")
    waiting: deque[Future[R]] = deque()
    try:
        for arguments in jobs:
            waiting.append(pool.submit(work, *arguments))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
