"""The CUDA engine: block-sparse products and dynamic pruning on GPUs, in Triton.

Public functions of the package take torch tensors on a GPU, and what speaks DLPack there; this module has the
arrays that live there. Nothing of torch or Triton is imported before a device is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.cuda.arrays import BSR
    from prunus.cuda.layers.packed import FFN
    from prunus.cuda.measuring import autotune
    from prunus.cuda.paged.resident import keep, kept

__all__ = ["BSR", "FFN", "autotune", "keep", "kept"]

_WHERE = {
    "BSR": "arrays",
    "FFN": "layers.packed",
    "autotune": "measuring",
    "keep": "paged.resident",
    "kept": "paged.resident",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
