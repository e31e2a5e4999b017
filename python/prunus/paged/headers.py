"""What a file says it holds: its header, read through a pager and parsed by the compiled part."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from prunus import _core
from prunus import _layout as lay
from prunus._dtypes import Array, DType
from prunus._errors import FormatError, PrunusError

__all__ = ["Blocks", "Header", "Layer", "Tensor", "is_npy", "load", "read_header", "read_npy"]

MARK: Final = "prunus"  # metadata: the version of what prunus adds to the format
BSR: Final = "prunus.bsr"  # metadata: which arrays are block-sparse, as JSON
LAYERS: Final = "prunus.ffn"  # metadata: which tensors are feed-forward layers, as JSON
CHECKSUMS: Final = "prunus.crc32c"  # metadata: bytes of a page that has a checksum
TABLE: Final = "__crc32c"  # the tensor of checksums
PARTS: Final = ("values", "indices", "indptr")
LAYER_PARTS: Final = ("panel", "bundle", "b_up", "b_down")
DECIDERS: Final = ("up", "gate", "predictor")
VERSION: Final = "1"


class Tensor(NamedTuple):
    """A tensor in a file: NumPy's name of its dtype, its shape in C order, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


class Blocks(NamedTuple):
    """A block-sparse array in a file: its shape and blocks, and the tensors it is made of."""

    shape: tuple[int, ...]
    blocksize: tuple[int, int]
    values: Tensor
    indices: Tensor
    indptr: Tensor

    @property
    def blocks(self) -> int:
        """How many blocks are stored, over all batch members."""
        return math.prod(self.values.shape[:-2])

    @property
    def density(self) -> float:
        """Share of block positions that are stored, 0.0 where there are none."""
        rows, cols = (lay.blocks_along(n, b) for n, b in zip(self.shape[-2:], self.blocksize, strict=True))
        positions = math.prod(self.shape[:-2]) * rows * cols
        return self.blocks / positions if positions else 0.0


class Layer(NamedTuple):
    """A packed feed-forward layer in a file: its sizes, and the tensors it is made of.

    Rows of the tensors are units; they may be longer than what they hold, so that they begin on pages.
    """

    decide: str
    gated: bool
    units: int
    features: int
    out_features: int
    bundle: Tensor
    panel: Tensor | None
    b_up: Tensor | None
    b_down: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the output, of the hidden layer and of the input."""
        return (self.out_features, self.units, self.features)

    @property
    def dtype(self) -> str:
        """NumPy's name of the weights' dtype."""
        return self.bundle.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(one.nbytes for one in self.tensors)

    @property
    def matrices(self) -> int:
        """How many matrices (units, features) a bundle has a row of."""
        return 1 + self.gated - (self.panel is not None)

    @property
    def width(self) -> int:
        """Values of a bundle."""
        return self.matrices * self.features + self.out_features

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that are there."""
        return tuple(one for one in (self.bundle, self.panel, self.b_up, self.b_down) if one is not None)


class Header(NamedTuple):
    """What a safetensors file holds."""

    size: int  # bytes of the header
    tensors: dict[str, Tensor]  # as stored, in the file's order, without what only fills gaps
    metadata: dict[str, str]  # as stored
    blocks: dict[str, Blocks]  # block-sparse arrays by name
    layers: dict[str, Layer]  # feed-forward layers by name

    @property
    def names(self) -> list[str]:
        """Names of the arrays as users see them: a block-sparse one has one name."""
        parts = {f"{name}.{part}": name for name in self.blocks for part in PARTS}
        parts |= {one.name: name for name, layer in self.layers.items() for one in layer.tensors}
        return list(dict.fromkeys(parts.get(name, name) for name in self.tensors if not self._own(name)))

    def _own(self, name: str) -> bool:
        return name == TABLE and CHECKSUMS in self.metadata

    @property
    def user_metadata(self) -> dict[str, str]:
        """The metadata without what prunus added."""
        return {k: v for k, v in self.metadata.items() if not reserved(k)}


def reserved(key: str) -> bool:
    """Say whether a key of the metadata is prunus' own."""
    return key == MARK or key.startswith(f"{MARK}.")


def is_npy(file: Any) -> bool:
    """Say whether a file begins as .npy files do."""
    return bool(file.read(0, min(6, file.size)) == b"\x93NUMPY")


def read_header(file: Any) -> Header:
    """Read the header of a safetensors file.

    Raises
    ------
    FormatError
        If it is none, or damaged.
    OSError
        If it cannot be read.
    """
    path = os.fsdecode(file.path)
    size = _core.safetensors_header_size(file.read(0, min(8, file.size)), file.size, path)
    found, metadata = _core.parse_safetensors(file.read(0, size), file.size, path)
    ours = MARK in metadata
    tensors = {one[0]: Tensor(*one) for one in found if not (ours and _is_pad(one[0], one[1]))}
    if not ours:
        return Header(size, tensors, metadata, {}, {})
    blocks, layers = (_described(metadata, tensors, path, *kind) for kind in _KINDS)
    return Header(size, tensors, metadata, blocks, layers)


def _is_pad(name: str, dtype: str) -> bool:
    rest = name.removeprefix("__pad_")
    return dtype == "uint8" and rest != name and rest.isascii() and rest.isdigit()


def _described(
    metadata: dict[str, str], tensors: dict[str, Tensor], path: str, key: str, what: str, make: Any
) -> dict[str, Any]:
    """Find what is made of several tensors, as the metadata tell."""
    text = metadata.get(key)
    if text is None:
        return {}
    try:
        described = json.loads(text)
        return {str(name): make(str(name), one, tensors) for name, one in described.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: the metadata {key!r} describe no {what}: {error}") from error


def _layer(name: str, described: dict[str, Any], tensors: dict[str, Tensor]) -> Layer:
    decide, gated = described["decide"], described["gated"]
    sizes = [described[key] for key in ("hidden", "features", "out_features")]
    if decide not in DECIDERS or not isinstance(gated, bool) or (decide == "gate" and not gated):
        raise ValueError(f"layer {name!r} cannot be gated={gated!r} and decided by {decide!r}")
    if not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"expected the sizes of layer {name!r} to be whole numbers, got {sizes}")
    panel, bundle, b_up, b_down = (tensors.get(f"{name}.{part}") for part in LAYER_PARTS)
    if bundle is None or (panel is None) != (decide == "predictor"):
        missing = "bundle" if bundle is None else "panel"
        raise ValueError(f"layer {name!r} decided by {decide!r} and its tensor {name}.{missing} do not fit")
    units, features, out = sizes
    layer = Layer(decide, gated, units, features, out, bundle, panel, b_up, b_down)
    for one, width in ((bundle, layer.width), (panel, features)):
        if one is None:
            continue
        if len(one.shape) != 2 or one.shape[0] != units or one.shape[1] < width:
            raise ValueError(
                f"expected {one.name} of {units} rows of at least {width} values, got {one.shape}"
            )
        if one.dtype != bundle.dtype or one.dtype not in _FLOATS:
            raise ValueError(f"expected {one.name} of floats, the same in all tables, got {one.dtype}")
    for one, length in ((b_up, units), (b_down, out)):
        if one is not None and (one.shape != (length,) or one.dtype not in _FLOATS):
            raise ValueError(f"expected {one.name} of {length} floats, got {one.dtype} {one.shape}")
    return layer


def _block(name: str, described: dict[str, Any], tensors: dict[str, Tensor]) -> Blocks:
    shape = lay.as_shape(described["shape"])
    blocksize = lay.as_blocksize(described["blocksize"])
    missing = [f"{name}.{part}" for part in PARTS if f"{name}.{part}" not in tensors]
    if missing:
        raise ValueError(f"expected the tensor {missing[0]!r}, the file has none")
    values, indices, indptr = (tensors[f"{name}.{part}"] for part in PARTS)
    batch = shape[:-2]
    own = len(indptr.shape) > 1
    rows = lay.blocks_along(shape[-2], blocksize[0])
    n = indices.shape[0] if len(indices.shape) == 1 else -1
    expected = {
        "values": ((*(() if own else batch), n, *blocksize), values),
        "indices": ((n,), indices),
        "indptr": ((*(batch if own else ()), rows + 1), indptr),
    }
    for part, (want, tensor) in expected.items():
        if tensor.shape != want:
            raise ValueError(f"expected {name}.{part} of shape {want}, got {tensor.shape}")
    if indices.dtype not in ("int32", "int64") or indptr.dtype != indices.dtype:
        raise ValueError(
            f"expected {name}.indices and {name}.indptr of int32 or int64, got {indices.dtype} "
            f"and {indptr.dtype}"
        )
    return Blocks(shape, blocksize, values, indices, indptr)


# What is made of several tensors: the metadata's key, what it is called, and what checks one.
_KINDS: Final = ((BSR, "block-sparse arrays", _block), (LAYERS, "feed-forward layers", _layer))
_FLOATS: Final = ("float32", "float64", "float16", "bfloat16")


def read_npy(file: Any) -> tuple[Tensor, bool]:
    """Read the header of an .npy file; return what it holds, and whether in Fortran order.

    Raises
    ------
    FormatError
        If it is none, damaged, or of a kind that is not supported.
    OSError
        If it cannot be read.
    """
    path = os.fsdecode(file.path)
    size = _core.npy_header_size(file.read(0, min(12, file.size)), file.size, path)
    dtype, shape, fortran, begin, end = _core.parse_npy(file.read(0, size), file.size, path)
    return Tensor("", dtype, shape, begin, end), fortran


def numpy_dtype(tensor: Tensor) -> DType:
    """Return a tensor's dtype.

    Raises
    ------
    PrunusError
        If its elements are smaller than a byte, or the installed ml_dtypes does not know them.
    """
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError:
        scalar = getattr(ml_dtypes, tensor.dtype, None)
        if scalar is None:
            raise PrunusError(
                f"tensor {tensor.name!r} holds {tensor.dtype}, which this version of ml_dtypes does not have"
            ) from None
        dtype = np.dtype(scalar)
    if dtype.itemsize * math.prod(tensor.shape) != tensor.nbytes:
        raise PrunusError(
            f"tensor {tensor.name!r} holds {tensor.dtype}, several to a byte, which NumPy has no arrays of"
        )
    return dtype


def load(file: Any, tensor: Tensor, panel: int) -> Array:
    """Read a whole tensor into memory, ``panel`` bytes at a time."""
    out = np.empty(tensor.shape, numpy_dtype(tensor))
    if tensor.nbytes:
        flat = out.reshape(-1).view(np.uint8)
        reader = file.segment(tensor.begin, tensor.nbytes, panel).reader(0, tensor.nbytes, panel)
        try:
            for at, part in reader:
                flat[at : at + len(part)] = part
        finally:
            reader.close()
    return out
