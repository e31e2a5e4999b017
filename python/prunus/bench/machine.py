"""The machine a comparison runs on, and one number of threads for every library in the process."""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import prunus as pr
from prunus._config import Cpu, cpu

__all__ = ["Cpu", "cpu", "optional", "pin_by_environment", "pinned", "slug"]

# Read once, when a library starts: they count only if set before NumPy is imported.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def optional(name: str) -> ModuleType | None:
    """Import a module that may be missing.

    Parameters
    ----------
    name : str
        Full name of the module.

    Returns
    -------
    module or None
        None if it isn't installed; a module that is there but broken raises.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.split(".", maxsplit=1)[0] == error.name.split(".")[0]:
            return None
        raise


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """Hold every library in the process to `count` threads: prunus, NumPy's BLAS, and torch if imported."""
    torch = sys.modules.get("torch")
    limits = optional("threadpoolctl")
    before = torch.get_num_threads() if torch is not None else 0
    with pr.num_threads(count):
        if torch is not None:
            torch.set_num_threads(count)
        try:
            if limits is None:
                yield
            else:
                with limits.threadpool_limits(count):
                    yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


def pin_by_environment(counts: list[int]) -> None:
    """Start the process anew with BLAS held to one number of threads, where that can't be done from inside.

    Does nothing where threadpoolctl is installed or the variables are set already.

    Parameters
    ----------
    counts : list of int
        Numbers of threads that the comparison needs.

    Raises
    ------
    ValueError
        If more than one number is needed.
    """
    if optional("threadpoolctl") is not None:
        return
    if len(counts) > 1:
        raise ValueError(
            f"NumPy's threads can't be changed within a process without threadpoolctl, and {counts} were "
            "asked for: pip install '.[bench]', which brings it, or give one number to --threads"
        )
    wanted = str(counts[0])
    if all(os.environ.get(name) == wanted for name in _THREAD_VARIABLES):
        return
    environment = dict(os.environ, **dict.fromkeys(_THREAD_VARIABLES, wanted))
    # sys.orig_argv is what the interpreter was started with: options like -W and -X come along.
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def slug(name: str) -> str:
    """Turn a CPU's name into a part of a file name.

    Examples
    --------
    >>> slug("Intel(R) Xeon(R) Processor @ 2.50GHz")
    'intel-xeon-processor-2.50ghz'
    """
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-") or "cpu"
