"""Pairs next to each other: every round, each contestant once, with a cold cache."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prunus._progress import Progress
from prunus.bench.paging.data import cached, drop
from prunus.bench.paging.fio import FioError
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.setup import Case, Contestant, Results
from prunus.bench.paging.worker import WorkerError

__all__ = ["Outcome", "run"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case found.

    Attributes
    ----------
    case : Case
        The case.
    found : dict
        Samples by contestant.
    missing : dict
        Who took no part, and why.
    """

    case: Case
    found: Results
    missing: dict[str, str]


def order(case: Case, number: int) -> Iterator[Contestant]:
    """Give the contestants of a round: the pair first, in either order by turns."""
    pair, rest = case.contestants[:2], case.contestants[2:]
    for contestant in (*(pair if number % 2 == 0 else pair[::-1]), *rest):
        if contestant.rounds is None or number < contestant.rounds:
            yield contestant


def _cold(contestant: Contestant, number: int) -> Sample:
    """Do one run with nothing in the page cache, and look what it left there."""
    drop(contestant.files)
    before, _ = cached(contestant.files)
    sample = contestant.run(number)
    after, size = cached(contestant.files)
    return sample.with_cached(max(after - before, 0) / max(size, 1))


def run(case: Case, pairs: int, say: Callable[[str], None] = lambda text: None) -> Outcome:
    """Run a case.

    Who fails takes no part from then on, and the report says why.

    Parameters
    ----------
    case : Case
        What is run.
    pairs : int
        Number of rounds, where the case does not have its own.
    say : callable
        Told of each contestant that fails.
    """
    rounds = pairs if case.rounds is None else case.rounds
    found: Results = {}
    missing = dict(case.missing)
    with Progress(rounds * len(case.contestants), case.name) as bar:
        for number in range(rounds):
            for contestant in order(case, number):
                if contestant.name in missing:
                    continue
                try:
                    sample = _cold(contestant, number)
                except (WorkerError, FioError, OSError) as error:
                    missing[contestant.name] = str(error)
                    found.pop(contestant.name, None)
                    say(f"{case.name}: {contestant.name}: {error}")
                    continue
                found.setdefault(contestant.name, []).append(sample)
                bar.step(f"{contestant.name}, round {number + 1}")
            drop({path for contestant in case.contestants for path in contestant.files})
    return Outcome(case, found, missing)
