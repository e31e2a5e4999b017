"""Buffers in DRAM, and arrays as their tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunus import _core
from prunus.tensix.errors import MisusedError
from prunus.tensix.mesh import ChipAt

__all__ = ["TILE", "Buffer", "Matrix", "format_of", "tile_bytes", "tilize", "untilize"]

#: Rows and columns of a tile.
TILE: Final = 32

# What a format's values are on the host. Block formats have no dtype of their own.
HOST: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "bfloat8_b": np.dtype(np.float32),
    "bfloat4_b": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
    "int32": np.dtype(np.int32),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
}
# Tenstorrent's block formats: codes of 8 and 4 bits, and an exponent of 8 bits for 16 values.
_BLOCK: Final = {"bfloat8_b": 8, "bfloat4_b": 4}


def format_of(dtype: object) -> str:
    """Return the tile format of a name or a NumPy dtype.

    Raises
    ------
    ValueError
        If tiles have no such format.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name  # type: ignore[call-overload]  # anything that NumPy takes
    if name not in HOST:
        raise ValueError(f"no format {name!r}: tiles have {', '.join(HOST)}")
    return str(name)


def tile_bytes(dtype: object) -> int:
    """Return the bytes of a tile of a format."""
    name = format_of(dtype)
    bits = _BLOCK.get(name)
    return TILE * TILE * HOST[name].itemsize if bits is None else TILE * TILE * bits // 8 + TILE * TILE // 16


def tilize(array: NDArray[Any], dtype: str) -> bytes:
    """Return the tiles of a matrix as bytes, row of tiles by row of tiles; edges are filled with zeros.

    Raises
    ------
    TypeError
        If values are integers and the format is not, or the reverse.
    ValueError
        If the array has not two dimensions, or integers do not fit.
    """
    if array.ndim != 2:
        raise ValueError(f"tiles are cut from matrices, got {array.ndim} dimensions")
    host = HOST[format_of(dtype)]
    whole = host.kind in "iu"
    if (array.dtype.kind in "iub") != whole or array.dtype.kind == "c":
        raise TypeError(f"values of {array.dtype} as tiles of {dtype}: convert them first")
    if not whole:
        return _core.tilize(dtype, np.ascontiguousarray(array, np.float32))
    limits = np.iinfo(host)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(f"values from {array.min()} to {array.max()} do not fit into {dtype}")
    values = np.ascontiguousarray(array, np.uint32).view(np.int32) if host == np.uint32 else array
    return _core.tilize(dtype, np.ascontiguousarray(values, np.int32))


def untilize(data: bytes, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Return the matrix whose tiles are given, with the dtype that the format has on the host."""
    values: NDArray[Any] = _core.untilize(dtype, data, *shape).reshape(shape)
    host = HOST[dtype]
    return values.view(np.uint32) if host == np.uint32 else values.astype(host, copy=False)


@dataclass(frozen=True, eq=False)
class Buffer:
    """Pages in DRAM, in turn in all channels or all in one. :meth:`Chip.pages` makes them.

    Attributes
    ----------
    number : int
        What the simulator calls it.
    page_bytes, pages : int
        Bytes of a page, and pages.
    channel : int or None
        The channel of all pages; None where they are spread.
    chip : tuple of int
        Row and column of the chip in whose DRAM it is.
    """

    number: int
    page_bytes: int
    pages: int
    channel: int | None
    chip: ChipAt
    # Numbers count the buffers of one simulated chip or mesh, and mean something else on another.
    _owner: _core.TensixChip = field(repr=False)

    def of(self, owner: _core.TensixChip) -> int:
        """Return the number, if this is a buffer of that chip or mesh.

        Raises
        ------
        MisusedError
            If it is another one's.
        """
        if self._owner is not owner:
            raise MisusedError(f"misused: buffer {self.number} of {self.nbytes} B is another chip's")
        return self.number

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self.page_bytes * self.pages

    def page(self, index: int, offset: int = 0) -> _core.Place:
        """Return the place of a page, for transfers.

        Parameters
        ----------
        index : int
            Page, from 0 on.
        offset : int
            Byte in the page.

        Raises
        ------
        MisusedError
            If there is no such byte.
        """
        if not (0 <= index < self.pages and 0 <= offset < self.page_bytes):
            raise MisusedError(
                f"misused: byte {offset} of page {index}, "
                f"the buffer has {self.pages} pages of {self.page_bytes} B"
            )
        return _core.Place.dram(self.number, index, offset, self.chip)


@dataclass(frozen=True, eq=False)
class Matrix(Buffer):
    """A matrix in DRAM, a page for each tile. :meth:`Chip.buffer` makes them.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns.
    dtype : str
        Format of the tiles.
    """

    shape: tuple[int, int]
    dtype: str

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return math.ceil(self.shape[0] / TILE), math.ceil(self.shape[1] / TILE)

    def tile(self, row: int, column: int) -> _core.Place:
        """Return the place of the tile in a row and a column of tiles.

        Raises
        ------
        MisusedError
            If there is no such tile.
        """
        rows, columns = self.tiles
        if not (0 <= row < rows and 0 <= column < columns):
            raise MisusedError(f"misused: tile ({row}, {column}) of {rows} x {columns} tiles")
        return _core.Place.dram(self.number, row * columns + column, 0, self.chip)


def shape_of(given: Sequence[int] | ArrayLike) -> tuple[int, int] | None:
    """Return the shape that an argument is, or None where it is an array's values."""
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(n, int | np.integer) for n in given):
        return int(given[0]), int(given[1])
    return None
