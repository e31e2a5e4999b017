"""Tensors of a file of any known format (safetensors, npy, GGUF), for programs that go through them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunus._dtypes import BFLOAT16, Array, DType
from prunus._errors import FormatError, PrunusError
from prunus.paged.files import File, open_file

__all__ = ["GgufArray", "open_tensors"]

_HINT = "pip install 'prunus[demo]' (in a clone: pip install '.[demo]')"


class GgufArray:
    """A tensor of a GGUF file; indexing dequantises the rows it touches.

    Attributes
    ----------
    shape : tuple of int
        In C order: the last axis is contiguous.
    dtype : dtype
        float32 for quantised values, otherwise what is stored.
    """

    def __init__(self, tensor: Any, dequantize: Any) -> None:
        self.shape = tuple(int(n) for n in reversed(tensor.shape))
        self._data: Array = tensor.data
        self._kind = tensor.tensor_type
        self._dequantize = dequantize
        self._plain = False
        if self._kind.name == "BF16":
            self._data = self._data.view(BFLOAT16)
        if (self._data.shape == self.shape and self._data.dtype.kind in "if") or self._kind.name == "BF16":
            self._plain = True
        self.dtype: DType = self._data.dtype if self._plain else np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they come out."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, key: Any) -> Array:
        at = key if isinstance(key, tuple) else (key,)
        if self._plain:
            return np.asarray(self._data[at])
        # Blocks of quantised values run along the last axis: whole rows are taken apart.
        lead, last = at[: self.ndim - 1], at[self.ndim - 1 :]
        rows = np.asarray(self._dequantize(np.ascontiguousarray(self._data[lead]), self._kind), np.float32)
        return rows[(..., *last)] if last else rows


def open_tensors(path: str, pager: Any = None) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Open a file and return its arrays by name, and its metadata.

    An ``.npy`` file has one array, under the file's name without the ending. Of a GGUF file the metadata stay
    behind: they are not text.

    Raises
    ------
    FormatError
        If it is none of the formats, or damaged.
    PrunusError
        If the package that reads GGUF is missing.
    OSError
        If it cannot be opened.
    """
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return _open_gguf(path), {}
    found = open_file(path, pager=pager)
    if isinstance(found, File):
        return found, found.metadata
    return {Path(path).stem: found}, {}


def _open_gguf(path: str) -> dict[str, GgufArray]:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise PrunusError(f"{path}: GGUF files are read with the package {error.name}: {_HINT}") from error
    try:
        tensors = gguf.GGUFReader(path).tensors
    except OSError:
        raise
    except Exception as error:  # of any kind where a file is damaged
        raise FormatError(f"{path}: expected a GGUF file: {error}") from error
    return {str(one.name): GgufArray(one, gguf.dequantize) for one in tensors}
