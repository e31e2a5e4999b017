"""``pr.save``: arrays into files that other programs read, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus._arrays import as_array
from prunus._bsr import BSR
from prunus._device import what
from prunus._dtypes import DType
from prunus.paged import headers
from prunus.paged.checksums import PAGE, Running, crc_of, pages_of
from prunus.paged.endings import is_npy_name, require_safetensors
from prunus.paged.files import PathLike
from prunus.paged.layers import layer_parts
from prunus.paged.output import Output
from prunus.paged.pagers import Pager, default_pager
from prunus.paged.sizes import parse_bytes
from prunus.paged.sources import Source, blocks_of, cut, is_paged, source_of
from prunus.paged.sparse import PagedBSR
from prunus.pruning.feed_forward import FeedForward

__all__ = ["save", "save_npy", "save_tensors"]

ALIGN: Final = 4096


def save(
    path: PathLike,
    arrays: Any,
    metadata: Mapping[str, str] | None = None,
    checksums: bool | int | str = False,
    align: int = ALIGN,
    *,
    pager: Any = None,
) -> None:
    """Write arrays to a safetensors file, or one array to an ``.npy`` file; atomic.

    Everything is written to a temporary file in the same folder, which is made durable and then takes the
    name: whatever happens, the path has all of the old file or all of the new one. Arrays on disk and
    expressions stream through; memory stays within the pager's budget and a few pieces.

    Parameters
    ----------
    path : str, bytes or path-like
        Where to. The ending ``.npy`` chooses that format; endings of other formats (``.npz``, ``.h5``,
        ``.pt``, ``.bin``, ``.gguf``, ...) are refused. A symbolic link stays, what it points to is replaced.
    arrays : mapping of str to array, or array
        What to write: ndarrays of any strides, BSR arrays, FFN layers, paged arrays and expressions, torch
        tensors on the host, or an open :class:`File`. For ``.npy`` one array.
    metadata : mapping of str to str, optional
        Kept beside the arrays; only for safetensors.
    checksums : bool, int or str
        Adds a CRC-32C for each page of 64 KiB, or of this many bytes; only for safetensors.
    align : int
        Data begin at a multiple of this many bytes, and so do arrays of at least that size: a power of two.
        4096 suits direct I/O; with 8 the file has no bytes that fill gaps.
    pager : Pager, optional
        What writes; the default one otherwise.

    Raises
    ------
    TypeError
        If a value is no array, or of a dtype that the format does not have.
    ValueError
        If names clash or are reserved, or arguments do not fit the format, or it is not one of the two.
    OSError
        If the disk is full or refuses; what was there is untouched then.

    Notes
    -----
    A BSR array ``w`` is stored as the tensors ``w.values``, ``w.indices`` and ``w.indptr``, and the metadata
    tell its shape. bfloat16 in ``.npy`` has the type ``<V2``, which ``numpy.save`` gives it too.
    """
    text = os.fsdecode(path)
    using = pager._pager if isinstance(pager, Pager) else default_pager() if pager is None else pager
    if isinstance(checksums, (bool, np.bool_)):
        page = PAGE if checksums else None
    else:
        page = parse_bytes(checksums, "checksums")
    if is_npy_name(text):
        if metadata or page is not None:
            raise ValueError(f"{text}: .npy has no place for metadata or checksums; save as .safetensors")
        save_npy(text, arrays, align, using)
        return
    require_safetensors(text)
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"{text}: expected a mapping of names to arrays, got {type(arrays).__name__}; one array alone is "
            "saved under a name that ends in .npy"
        )
    parts: dict[str, Source] = {}
    sparse: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"{text}: names of arrays must be str, got {name!r}")
        _add(parts, sparse, layers, name, value)
    save_tensors(text, parts, sparse, metadata, page, align, using, layers=layers)


def _add(
    parts: dict[str, Source], sparse: dict[str, Any], layers: dict[str, Any], name: str, value: Any
) -> None:
    """Add an array's tensors under their names."""
    if isinstance(value, FeedForward):
        layers[name], new = layer_parts(value, name)
    elif isinstance(value, (BSR, PagedBSR)):
        values, indices, indptr, shape, blocksize = blocks_of(value)
        sparse[name] = {"shape": list(shape), "blocksize": list(blocksize)}
        found = dict(
            zip(headers.PARTS, (values, source_of(indices, name), source_of(indptr, name)), strict=True)
        )
        new = {f"{name}.{part}": source for part, source in found.items()}
    elif getattr(type(value), "on_cuda", False):
        raise TypeError(f"arrays[{name!r}] must be in host memory, got {what(value)}")
    else:
        new = {name: source_of(value, f"arrays[{name!r}]")}
    for key, source in new.items():
        if key in parts:
            raise ValueError(
                f"two tensors are called {key!r}: {name!r} is made of several and has one of that name"
            )
        parts[key] = source


def file_dtype(dtype: DType, name: str) -> str:
    """Return the name by which headers know a dtype.

    Raises
    ------
    TypeError
        If the values take more or less space in files than in NumPy's arrays.
    """
    found = dtype.newbyteorder("=").name
    if found.startswith(("float4_", "float6_")):
        raise TypeError(
            f"{name}: files hold several {found} in a byte, and NumPy's arrays one; convert first"
        )
    return found


def save_tensors(
    path: str,
    parts: Mapping[str, Source],
    sparse: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    page: int | None,
    align: int,
    pager: Any,
    progress: Callable[[str, int], None] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors to a safetensors file; ``progress`` is told the name and bytes of each piece."""
    require_safetensors(path)
    for key, value in dict(metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{path}: metadata must be str, got {key!r}: {value!r}")
        if headers.reserved(key):
            raise ValueError(f"{path}: the metadata {key!r} is prunus' own")
    # Which tensors fill gaps, and the table of checksums, only a file with this mark has.
    own = {headers.MARK: headers.VERSION}
    if sparse:
        own[headers.BSR] = json.dumps(dict(sparse), ensure_ascii=False)
    if layers:
        own[headers.LAYERS] = json.dumps(dict(layers), ensure_ascii=False)
    specs = [(name, file_dtype(one.dtype, name), one.shape) for name, one in parts.items()]
    last = None
    if page is not None:
        if headers.TABLE in parts:
            raise ValueError(f"{path}: a tensor cannot be called {headers.TABLE!r}: the checksums are")
        own[headers.CHECKSUMS] = str(page)
        last = headers.TABLE
        count = 2 + sum(pages_of(one.dtype.itemsize * _size(one.shape), page) for one in parts.values())
        specs.append((last, "uint32", (count,)))
    header, placed, size = _core.write_safetensors_header(
        specs, {**dict(metadata or {}), **own}, align, last, path
    )
    table = [] if page is None else [np.atleast_1d(crc_of(header))]
    at = len(header)
    with Output(path, size, pager) as out:
        out.write(np.frombuffer(header, np.uint8))
        for name, _, _, begin, end in placed:
            if name == last:
                values = np.concatenate(table)
                whole = np.append(values, crc_of(values.view(np.uint8)))
                out.write(whole.astype("<u4").view(np.uint8))
            elif name not in parts:  # fills a gap
                out.write(np.zeros(end - begin, np.uint8))
            else:
                running = None if page is None else Running(page)
                written = 0
                for data in parts[name].bytes():
                    out.write(data)
                    written += len(data)
                    if running is not None:
                        running.add(data)
                    if progress is not None:
                        progress(name, len(data))
                if written != end - begin:
                    raise ValueError(f"{path}: tensor {name!r} gave {written} bytes, expected {end - begin}")
                if running is not None:
                    table.append(running.finish())
            at = end
    assert at == size


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def save_npy(path: str, value: Any, align: int, pager: Any) -> None:
    """Write one array, or what streams, to an .npy file; in Fortran order where it lies so in memory."""
    if isinstance(value, (Mapping, BSR, PagedBSR)):
        raise TypeError(
            f"{path}: .npy holds one dense array, got {type(value).__name__}; save as .safetensors"
        )
    fortran = False
    if isinstance(value, Source):
        source = value
    elif is_paged(value):
        source = source_of(value, "arrays")
    else:
        array = as_array(value, "arrays")
        fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
        stored = array.T if fortran else array
        native = array.dtype.newbyteorder("=")
        source = Source(native, array.shape, lambda: cut(stored, stored.shape, stored.itemsize))
    # NumPy reads headers of at most 10 000 bytes unless it is told to trust a file.
    header = _core.npy_header(
        file_dtype(source.dtype, "arrays"), source.shape, fortran, max(min(align, ALIGN), 64), path
    )
    size = len(header) + source.dtype.itemsize * _size(source.shape)
    with Output(path, size, pager) as out:
        for data in _with(header, source.bytes()):
            out.write(data)


def _with(header: bytes, data: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    yield np.frombuffer(header, np.uint8)
    yield from data
