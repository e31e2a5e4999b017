"""Sets of pages that are revisited, and caches that are simulated on them.

The traces are made as those of the pool's own tests are (``simulate.rs``), by the same generator and in the
same proportions to what a cache holds.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence

__all__ = [
    "TRACES",
    "Random",
    "belady",
    "cyclic",
    "lru",
    "s3_fifo",
    "shuffled",
    "trace",
    "with_scans",
    "zipf",
]

_MASK = (1 << 64) - 1
TRACES = ("cyclic", "shuffled", "skewed", "mixed with scans")


class Random:
    """splitmix64: the same numbers everywhere."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def draw(self) -> int:
        """Return the next 64 bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, end: int) -> int:
        """Return a number below `end`."""
        return self.draw() % max(end, 1)

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        return (self.draw() >> 11) / (1 << 53)


def cyclic(pages: int, passes: int) -> list[int]:
    """Pass over pages in the same order again and again."""
    return list(range(pages)) * passes


def shuffled(pages: int, passes: int, random: Random) -> list[int]:
    """Pass over pages, each time in an order of its own."""
    order, found = list(range(pages)), []
    for _ in range(passes):
        for last in range(pages - 1, 0, -1):
            other = random.below(last + 1)
            order[last], order[other] = order[other], order[last]
        found += order
    return found


def zipf(pages: int, skew: float, length: int, random: Random) -> list[int]:
    """Draw pages, page k with a probability in proportion to (k + 1) ** -skew."""
    from bisect import bisect_left
    from itertools import accumulate

    sums = list(accumulate((k + 1) ** -skew for k in range(pages)))
    return [min(bisect_left(sums, random.unit() * sums[-1]), pages - 1) for _ in range(length)]


def with_scans(draws: Sequence[int], first: int, scan: int, every: int) -> list[int]:
    """Put a scan of pages that never come again after every so many draws."""
    found: list[int] = []
    for start in range(0, len(draws), every):
        found += draws[start : start + every]
        found += range(first, first + scan)
        first += scan
    return found


def trace(name: str, capacity: int) -> list[int]:
    """Return a trace for a cache of `capacity` pages.

    Parameters
    ----------
    name : str
        One of `TRACES`.
    capacity : int
        Pages that the cache holds.

    Raises
    ------
    ValueError
        If there is no such trace.
    """
    pages = capacity * 12 // 5  # as 768 MiB are to 320 MiB
    if name == "cyclic":
        return cyclic(pages, 12)
    if name == "shuffled":
        return shuffled(pages, 12, Random(1))
    if name == "skewed":
        return zipf(10 * capacity, 0.9, 120 * capacity, Random(2))
    if name == "mixed with scans":
        draws = zipf(10 * capacity, 0.9, 90 * capacity, Random(3))
        return with_scans(draws, 10 * capacity, capacity // 2, capacity)
    raise ValueError(f"no trace {name!r}: expected one of {', '.join(TRACES)}")


def lru(pages: Sequence[int], capacity: int) -> float:
    """Return the share of hits where the page least recently used leaves."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for page in pages:
        if page in kept:
            hits += 1
            kept.move_to_end(page)
            continue
        if len(kept) >= capacity:
            kept.popitem(last=False)
        kept[page] = None
    return hits / max(len(pages), 1)


def s3_fifo(pages: Sequence[int], capacity: int) -> float:
    """Return the share of hits of S3-FIFO (Yang et al. 2023).

    A small queue of a tenth, a main queue, and a ghost queue of as many names as the main one has pages.
    """
    small_size = max(capacity // 10, 1)
    main_size = max(capacity - small_size, 1)
    small: deque[int] = deque()
    main: deque[int] = deque()
    ghost: OrderedDict[int, None] = OrderedDict()
    uses: dict[int, int] = {}
    hits = 0

    def leave_main() -> None:
        while True:
            page = main.popleft()
            if uses[page] == 0:
                del uses[page]
                return
            uses[page] -= 1
            main.append(page)

    def leave_small() -> None:
        page = small.popleft()
        if uses[page] > 1:
            uses[page] = 0
            if len(main) >= main_size:
                leave_main()
            main.append(page)
        else:
            del uses[page]
            ghost[page] = None
            if len(ghost) > main_size:
                ghost.popitem(last=False)

    for page in pages:
        if page in uses:
            hits += 1
            uses[page] = min(uses[page] + 1, 3)
            continue
        while len(small) + len(main) >= capacity:
            if small and (len(small) >= small_size or not main):
                leave_small()
            else:
                leave_main()
        if page in ghost:
            del ghost[page]
            main.append(page)
        else:
            small.append(page)
        uses[page] = 0
    return hits / max(len(pages), 1)


def belady(pages: Sequence[int], capacity: int) -> float:
    """Return the share of hits of the best that can be: the page needed last leaves (Belady 1966)."""
    never = len(pages)
    following = [never] * never
    last: dict[int, int] = {}
    for at in range(never - 1, -1, -1):
        following[at] = last.get(pages[at], never)
        last[pages[at]] = at
    needed: dict[int, int] = {}  # when each page that is kept is needed next
    queue: list[tuple[int, int]] = []  # the same, latest first; entries out of date are skipped
    hits = 0
    for at, page in enumerate(pages):
        if page in needed:
            hits += 1
        elif len(needed) >= capacity:
            while True:
                when, out = heapq.heappop(queue)
                if needed.get(out) == -when:
                    del needed[out]
                    break
        needed[page] = following[at]
        heapq.heappush(queue, (-following[at], page))
    return hits / max(never, 1)
