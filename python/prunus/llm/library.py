"""Where models are found, and where packed ones are kept for the next time."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunus.llm.config import Config
from prunus.llm.packaged import PACKAGED, find_model, find_packaged
from prunus.llm.packing import pack
from prunus.llm.weights import FORMAT

__all__ = ["PACKAGED", "cache_folder", "find_packaged", "packed"]


def cache_folder() -> Path:
    """Return the folder where packed models are kept: ``PRUNUS_CACHE``, or the user's cache folder."""
    own = os.environ.get("PRUNUS_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "prunus"


def packed(
    model: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    decide: str = "up",
    progress: bool = False,
    check: Callable[[Config], None] | None = None,
) -> Path:
    """Return a packed form of a model, which is written unless the cache folder has it.

    The cache folder is ``PRUNUS_CACHE``, or the user's.

    Parameters
    ----------
    model : path-like
        A GGUF file, a Hugging Face folder, or "smollm2".
    dtype, decide, check
        As :func:`prunus.llm.pack`.
    progress : bool
        Show a progress bar on a terminal while packing.

    Raises
    ------
    OSError
        If the model cannot be read, or the cache folder not written to.
    """
    found = os.path.realpath(find_model(model))
    name = f"{Path(found).stem}-{dtype}-{decide}-{_fingerprint(found, dtype, decide)}.safetensors"
    path = cache_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pack(found, path, dtype=dtype, decide=decide, progress=progress, check=check)
    return path


def _fingerprint(path: str, *more: Any) -> str:
    """Return what tells one state of a file or folder from another."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    told: list[Any] = [FORMAT, path, *more]
    for file in files:
        about = file.stat()
        told += [file.name, about.st_size, about.st_mtime_ns]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:10]
