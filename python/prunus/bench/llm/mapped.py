"""The same model with its weights as views of a memory map: the system's page cache pages, not prunus."""

import json
import mmap
from typing import Any

import numpy as np

from prunus._dtypes import BFLOAT16, F32, Array
from prunus.llm import Model
from prunus.llm import load as load_paged
from prunus.llm.weights import Weights
from prunus.pruning.packed import FFN

__all__ = ["ADVICE", "load"]

# How a map may be read; none of them is best everywhere.
ADVICE = ("normal", "sequential", "willneed")
# What a pager needs to be opened; nothing passes through it but norms.
_LITTLE = "4 MiB"
_DTYPES = {"BF16": BFLOAT16, "F32": F32}


def load(path: str, advice: str = "normal") -> Model:
    """Open a packed model whose matrices are views of a map of the file.

    Parameters
    ----------
    path : str
        A model that :func:`prunus.llm.pack` wrote.
    advice : str
        One of `ADVICE`: what the system is told of how the map is read. "willneed" reads all of it ahead.
    """
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view.madvise(
        {"normal": mmap.MADV_NORMAL, "sequential": mmap.MADV_SEQUENTIAL}.get(advice, mmap.MADV_WILLNEED)
    )
    size = int.from_bytes(view[:8], "little")
    header: dict[str, Any] = json.loads(view[8 : 8 + size])

    def table(name: str) -> Array:
        told = header[name]
        begin, end = told["data_offsets"]
        kind = _DTYPES[told["dtype"]]
        count = (end - begin) // kind.itemsize
        found: Array = np.frombuffer(view, kind, count, 8 + size + begin).reshape(told["shape"])
        return found

    model = load_paged(path, _LITTLE)
    old = model.weights
    layers = []
    for number, layer in enumerate(old.layers):
        ffn, at = layer.ffn, f"layers.{number}."
        panel = None if ffn.decide == "predictor" else table(f"{at}ffn.panel")
        width = ffn.features * (1 + ffn.gated - (panel is not None)) + ffn.out_features
        bundle = table(f"{at}ffn.bundle")[:, :width]
        whole = FFN._assemble(panel, bundle, ffn.decide, ffn.features, ffn.gated, None, None)
        layers.append(
            layer._replace(qkv=table(f"{at}attention.qkv"), out=table(f"{at}attention.out"), ffn=whole)
        )
    embeddings = table("embeddings")
    output = embeddings if old.config.tie_word_embeddings else table("output")
    model.weights = Weights(old.config, layers, old.norm, embeddings, output, old.file)
    return model
