"""One set of threads for torch's operations and this package's: those that torch has, and as many.

A training step alternates between both. Threads of torch's OpenMP team look for work for milliseconds after
an operation; threads of our own would share the processors with them. So the engine runs its tasks as regions
of the same team, wherever torch's runtime has the entry for it: libgomp, LLVM's and Intel's on Linux.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

from prunus import _core

__all__ = ["borrow", "borrowed", "follow", "followed", "give_back"]

_ENTRY: Final = "GOMP_parallel"
_RUNTIMES: Final = ("libgomp", "libiomp5", "libomp")
# at::get_num_threads(), as torch.get_num_threads() calls it; it knows what torch.set_num_threads() said on
# another thread.
_COUNT: Final = "_ZN2at15get_num_threadsEv"
_MAPS: Final = Path("/proc/self/maps")
# What is lent, and whether torch is asked how many.
_LOADED: Final[list[ctypes.CDLL]] = []
_FOLLOWED: Final[list[ctypes.CDLL]] = []


def borrow() -> bool:
    """Run tasks on the threads of torch's OpenMP runtime from now on; say whether there is one.

    ``PRUNUS_OPENMP=0`` keeps the engine's own threads, which a forked child has as well.
    """
    if os.environ.get("PRUNUS_OPENMP", "1") in ("0", "false", "off", "no") or sys.platform != "linux":
        return False
    for path in _runtimes():
        try:
            library = ctypes.CDLL(path)
            entry = ctypes.cast(getattr(library, _ENTRY), ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
        if entry:
            _LOADED.append(library)
            _core.lend_threads(entry)
            return True
    return False


def follow() -> bool:
    """Use as many threads as torch from now on; say whether it can be asked.

    So ``OMP_NUM_THREADS``, ``torch.set_num_threads`` and the single threads of DataLoader's workers hold for
    the engine too, unless ``PRUNUS_NUM_THREADS`` or ``prunus.num_threads`` says otherwise.
    """
    import torch

    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            library = ctypes.CDLL(str(path))
            count = ctypes.cast(getattr(library, _COUNT), ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
        if count:
            _FOLLOWED.append(library)
            _core.follow_threads(count)
            return True
    return False


def followed() -> bool:
    """Say whether there are as many threads as torch has."""
    return bool(_FOLLOWED)


def borrowed() -> bool:
    """Say whether tasks run on torch's threads."""
    return bool(_LOADED)


def give_back() -> None:
    """Run tasks on the engine's own threads again."""
    _core.lend_threads(0)
    _LOADED.clear()  # the runtime stays loaded, by torch


def _runtimes() -> list[str]:
    """Return the OpenMP runtimes that this process has loaded, torch's own first."""
    import torch

    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    found = [path for path in paths if Path(path).name.startswith(_RUNTIMES)]
    home = str(Path(torch.__file__).parent)
    return sorted(found, key=lambda path: (not path.startswith(home), path))
