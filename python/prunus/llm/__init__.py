"""Language models of the Llama family whose weights may stay on disk.

:func:`load` opens a packed model, a GGUF file or a Hugging Face folder; :func:`pack` writes the layout that
is read best from disk, and :func:`packed` does so once, into the cache folder; :meth:`Model.calibrate` finds
which hidden units a layer can do without.
"""

from prunus.llm.calibration import Calibration
from prunus.llm.config import Config, Rope, UnsupportedModelError
from prunus.llm.generation import Completion, Generation, Usage
from prunus.llm.library import packed
from prunus.llm.model import Model, load
from prunus.llm.packing import pack

__all__ = [
    "Calibration",
    "Completion",
    "Config",
    "Generation",
    "Model",
    "Rope",
    "UnsupportedModelError",
    "Usage",
    "load",
    "pack",
    "packed",
]
