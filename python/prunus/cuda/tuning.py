"""What was measured: tiles by GPU and problem, in a file of the user's cache folder.

The file is JSON, ``{"prunus tiles": 1, "found": {GPU: {operation: {problem: TILE}}}}``. A tile is
``[m, n, k, warps, stages, loads]``, and a GPU its name with the versions of driver, Triton and prunus:
findings of others may not hold.
``PRUNUS_CUDA_TUNING`` names another file, or is "off". It is read once in a process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from prunus._core import __version__
from prunus.cuda.runtime import Place
from prunus.cuda.versions import driver, libraries

__all__ = ["ENVIRONMENT", "Found", "file_of_findings", "forget", "keep", "summary", "tuned"]

#: A tile, as :class:`prunus.cuda.configs.Tile`.
Found: TypeAlias = tuple[int, int, int, int, int, str]
_Table: TypeAlias = dict[str, dict[str, dict[str, Found]]]

ENVIRONMENT: Final = "PRUNUS_CUDA_TUNING"
_MARK: Final = "prunus tiles"
_VERSION: Final = 1
_LOADS: Final = ("pointers", "descriptors", "warps")
_SIDES: Final = (16, 32, 64, 128, 256)
_WARPS: Final = (1, 2, 4, 8, 16)
_STAGES: Final = range(1, 9)


def file_of_findings() -> Path | None:
    """Return where findings are kept; None where that is switched off."""
    named = os.environ.get(ENVIRONMENT, "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named)
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        folder = "~/Library/Caches"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "prunus" / "cuda-tiles.json"


def tuned(where: Place, operation: str, problem: str) -> Found | None:
    """Return the tile that was found fastest on a GPU, if one was."""
    path = file_of_findings()
    if path is None or where.interpreted or where.device.type == "meta":
        return None
    return _table(path).get(_gpu(where), {}).get(operation, {}).get(problem)


def keep(where: Place, operation: str, problem: str, tile: Found) -> Path:
    """Write down which tile was fastest, and have it serve from now on.

    Raises
    ------
    ValueError
        If findings are switched off.
    OSError
        If the file cannot be written.
    """
    path = file_of_findings()
    if path is None:
        raise ValueError(f"there is nowhere to keep what was found: {ENVIRONMENT}=off")
    forget()
    # Read again: other processes may have found something meanwhile.
    table = {gpu: {name: dict(one) for name, one in of.items()} for gpu, of in _table(path).items()}
    table.setdefault(_gpu(where), {}).setdefault(operation, {})[problem] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({_MARK: _VERSION, "found": table}, file, indent=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    forget()
    return path


def forget() -> None:
    """Have the file read again when a tile is asked for next."""
    _table.cache_clear()
    configs = sys.modules.get("prunus.cuda.configs")
    if configs is not None:
        configs.forget()


def summary() -> str:
    """Say which tables tiles come from."""
    path = file_of_findings()
    if path is None:
        return f"by the model of costs; findings are switched off by {ENVIRONMENT}"
    found = sum(len(one) for of in _table(path).values() for one in of.values())
    if not found:
        return f"by the model of costs; autotune has found nothing yet ({path})"
    return f"{found} found by autotune ({path}), others by the model of costs"


@cache
def _gpu(where: Place) -> str:
    return f"{where.name}, driver {driver()}, triton {libraries().versions[1]}, prunus {__version__}"


@cache
def _table(path: Path) -> _Table:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return _ignored(path, str(error))
    if not isinstance(told, dict) or told.get(_MARK) != _VERSION:
        return _ignored(path, "it is not a file of tiles, or of another version")
    try:
        return {
            str(gpu): {
                str(operation): {str(problem): _checked(tile) for problem, tile in one.items()}
                for operation, one in of.items()
            }
            for gpu, of in told["found"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _ignored(path, f"{type(error).__name__}: {error}")


def _checked(tile: Any) -> Found:
    """Return a tile, if it can be one."""
    m, n, k, warps, stages, loads = tile
    known = (_SIDES, _SIDES, _SIDES, _WARPS, _STAGES, _LOADS)
    for value, allowed in zip((m, n, k, warps, stages, loads), known, strict=True):
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(f"{value!r} in a tile {tile!r}")
    return m, n, k, warps, stages, loads


def _ignored(path: Path, why: str) -> _Table:
    warnings.warn(f"{path}: measured tiles are ignored: {why}", RuntimeWarning, stacklevel=4)
    return {}
