"""A whole comparison, from the files to the last table."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from prunus.bench.paging import cases, report, rounds
from prunus.bench.paging.data import remove
from prunus.bench.paging.limits import NoLimitError, limited
from prunus.bench.paging.rounds import Outcome
from prunus.bench.paging.setup import prepare, with_group
from prunus.bench.paging.worker import WorkerError

__all__ = ["FOLDER", "compare"]

# Files go into a folder of that name, so that nothing else is ever deleted.
FOLDER = "prunus-bench-paging"
_LIMIT = 512_000_000


def compare(
    place: Path | None,
    size: int,
    budget: int,
    pairs: int,
    peers: int,
    only: Sequence[str],
    keep: bool,
    show: Callable[[str], None],
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run cases and show their tables as they come.

    Parameters
    ----------
    place : Path, optional
        Folder on the drive that is measured; that of temporary files by default.
    size, budget : int
        Bytes of the file, and of memory that a pager may hold.
    pairs, peers : int
        Rounds of prunus and fio, and of those who are slow.
    only : sequence of str
        Names of cases.
    keep : bool
        Leave the files there, for the next time.
    show, say : callable
        Given each table, and remarks.

    Returns
    -------
    list of Outcome
        What each case found.

    Raises
    ------
    OSError
        If files cannot be written.
    ValueError
        If sizes do not fit.
    """
    folder = (Path(tempfile.gettempdir()) if place is None else place) / FOLDER
    outcomes = []
    with ExitStack() as stack:
        if not keep:
            stack.callback(_delete, folder)
        setup = prepare(folder, size, budget, pairs, peers, say)
        try:
            setup = with_group(setup, stack.enter_context(limited(_LIMIT)), "")
        except NoLimitError as error:
            say(str(error))
            setup = with_group(setup, None, str(error))
        for name in only:
            try:
                outcome = rounds.run(cases.make(name, setup), pairs, say)
            except WorkerError as error:  # its files could not be made
                say(f"{name}: left out: {error}")
                continue
            outcomes.append(outcome)
            show(report.report(outcome, budget))
    return outcomes


def _delete(folder: Path) -> None:
    """Delete what the comparison wrote."""
    if folder.is_dir():
        remove([path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors")])
        for store in folder.glob("data-*.zarr"):
            shutil.rmtree(store, ignore_errors=True)
        with suppress(OSError):  # something else is in it
            folder.rmdir()
