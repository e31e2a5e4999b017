"""Working memory: .npy files that are read and written in place, and how arrays are saved."""

from __future__ import annotations

import io
import operator
import os
import struct
import tempfile
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from prunus._dtypes import BFLOAT16, DType, as_dtype
from prunus._errors import FormatError, PrunusError
from prunus.paged.array import PagedArray, from_file
from prunus.paged.endings import require_npy
from prunus.paged.expr import assign
from prunus.paged.operators import Operators
from prunus.paged.pagers import pick_pager
from prunus.paged.values import appended, check_kind, converted

__all__ = ["append", "empty", "from_array", "full", "open", "save_array", "zeros"]

_ALIGNED: Final = 4096  # data begin here: a sector's multiple, so that pages can be written in place
_MAGIC: Final = b"\x93NUMPY"
_LARGEST_HEADER: Final = 1 << 20

Path = str | os.PathLike[str]


# The header --------------------------------------------------------------------------------------------


def _header(
    shape: tuple[int, ...], dtype: DType, fortran: bool, size: int = _ALIGNED, version: int = 1
) -> bytes:
    """Return a .npy header of exactly ``size`` bytes.

    Raises
    ------
    PrunusError
        If it does not fit.
    """
    descr = "<V2" if dtype == BFLOAT16 else np.lib.format.dtype_to_descr(dtype)
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode("latin1")
    lead = len(_MAGIC) + 2 + (2 if version == 1 else 4)
    room = size - lead
    if len(text) + 1 > room:
        raise PrunusError(
            f"the .npy header has room for {room} bytes, and shape {shape} needs {len(text) + 1}"
        )
    length = struct.pack("<H" if version == 1 else "<I", room)
    return _MAGIC + bytes([version, 0]) + length + text.ljust(room - 1) + b"\n"


def _read_header(file: Any) -> tuple[tuple[int, ...], DType, bool, int, int]:
    """Return shape, dtype, Fortran order, the header's size and its version."""
    path = os.fsdecode(file.path)
    start = file.read(0, min(12, file.size))
    if len(start) < 10 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise FormatError(f"{path} is no .npy file: it begins with {start[:8]!r}")
    version = start[6]
    lead = 10 if version == 1 else 12
    (length,) = struct.unpack("<H" if version == 1 else "<I", start[8:lead])
    if length > _LARGEST_HEADER or lead + length > file.size:
        raise FormatError(f"{path} has a header of {length} bytes and {file.size} in all")
    raw = start[:lead] + file.read(lead, length)
    try:
        stream = io.BytesIO(raw)
        np.lib.format.read_magic(stream)
        if version == 1:
            read = np.lib.format.read_array_header_1_0(stream, max_header_size=_LARGEST_HEADER)
        else:
            read = np.lib.format._read_array_header(  # type: ignore[attr-defined]
                stream, version=(version, 0), max_header_size=_LARGEST_HEADER
            )
    except (ValueError, SyntaxError, TypeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} has a malformed .npy header: {error}") from None
    shape, fortran, dtype = read
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        dtype = BFLOAT16  # what np.save writes for it
    return tuple(shape), dtype, bool(fortran), lead + length, version


# Making and opening ------------------------------------------------------------------------------------


def empty(
    shape: int | tuple[int, ...],
    dtype: DTypeLike | str = np.float64,
    path: Path | None = None,
    *,
    order: str = "C",
    budget: int | str | None = None,
    pager: Any = None,
    page: int | None = None,
) -> PagedArray:
    """Return a new array in a .npy file, to be used as working memory.

    The file is sparse until it is written, and what was not written reads as 0.

    Without ``path`` it is a temporary file: it lies in the folder that ``tempfile.gettempdir()`` names
    (``TMPDIR``, or else /tmp, which on some systems is memory), loses its name at once, and its room is free
    again when the array and its views are gone. Set ``TMPDIR`` before the program starts, or
    ``tempfile.tempdir``, to have such files elsewhere; temporary results, as of ``cumsum``, follow.
    ``a.path`` is the name that it had, and ``repr(a)`` says that it is unlinked.

    Parameters
    ----------
    shape : int or tuple of int
        The array's shape.
    dtype : dtype-like
        Its dtype; ``"bfloat16"`` is one.
    path : path, optional
        Where; a file that is there is emptied, or where this process has it open another one takes its
        place: arrays that have the old one raise OSError (ESTALE) when they are read. By default a temporary
        file, as said above.
    order : {"C", "F"}
        Whether the last or the first axis runs fastest.
    budget : int or str, optional
        Bytes of memory that a pager of its own may use; by default the shared pager is used.
    pager : Pager, optional
        The pager to use.
    page : int, optional
        Bytes of a page in random access.

    Raises
    ------
    OSError
        If the file cannot be made.
    TypeError
        If the shape is none, or values of the dtype are no run of bytes.
    ValueError
        If the shape is negative or the order unknown.
    """
    require_npy(path)
    sizes = _sizes(shape)
    kind = as_dtype(dtype)
    if any(n < 0 for n in sizes):
        raise ValueError(f"negative dimensions are not allowed, got {sizes}")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', got {order!r}")
    if kind.hasobject:
        raise TypeError(f"dtype {kind} cannot be in a file that is read page by page")
    pager = pick_pager(budget, pager)
    header = _header(sizes, kind, order == "F")
    nbytes = len(header) + kind.itemsize * int(np.prod(sizes, dtype=object))
    if path is None:
        handle, name = tempfile.mkstemp(prefix="prunus-", suffix=".npy")
        os.close(handle)
        try:
            file = pager.open(name, "r+")
        finally:
            os.unlink(name)
        file.resize(nbytes)
    else:
        file = pager.open(os.fspath(path), "w+", nbytes)
    file.write(0, header)
    return from_file(
        file, len(header), sizes, kind, fortran=order == "F", writable=True, pager=pager, page=page,
        header=len(header),
    )  # fmt: skip


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape as NumPy takes it: an integer, or a sequence of them.

    Raises
    ------
    TypeError
        If it is neither.
    """
    try:
        if not isinstance(shape, bool):
            return (operator.index(shape),)
    except TypeError:
        pass
    if not isinstance(shape, Iterable):
        raise TypeError(f"expected a sequence of integers or a single integer, got '{shape}'")
    return tuple(operator.index(n) for n in shape)


def zeros(
    shape: int | tuple[int, ...],
    dtype: DTypeLike | str = np.float64,
    path: Path | None = None,
    *,
    order: str = "C",
    budget: int | str | None = None,
    pager: Any = None,
    page: int | None = None,
) -> PagedArray:
    """Return a new array of zeros in a .npy file; the zeros are not written.

    All parameters, and where the file is, are as :func:`empty` has them.
    """
    return empty(shape, dtype, path, order=order, budget=budget, pager=pager, page=page)


def full(
    shape: int | tuple[int, ...],
    value: Any,
    dtype: DTypeLike | str | None = None,
    path: Path | None = None,
    *,
    order: str = "C",
    budget: int | str | None = None,
    pager: Any = None,
    page: int | None = None,
) -> PagedArray:
    """Return a new array in a .npy file, filled with a value.

    Parameters
    ----------
    shape : int or tuple of int
        The array's shape.
    value : array_like or PagedArray or PagedExpr
        What to fill it with; broadcast to ``shape``.
    dtype : dtype-like, optional
        The dtype; the value's by default.
    path, order, budget, pager, page
        As for :func:`empty`.

    Raises
    ------
    OverflowError, ValueError, TypeError
        If Python numbers do not fit the dtype, as in an assignment.
    """
    if not isinstance(value, Operators):
        value = np.asarray(value) if dtype is None else converted(value, as_dtype(dtype))
    kind = value.dtype if dtype is None else dtype
    a = empty(shape, kind, path, order=order, budget=budget, pager=pager, page=page)
    a[...] = value
    return a


def from_array(
    value: Any,
    path: Path | None = None,
    *,
    dtype: DTypeLike | str | None = None,
    order: str = "C",
    budget: int | str | None = None,
    pager: Any = None,
    page: int | None = None,
) -> PagedArray:
    """Return a copy of an array or expression in a .npy file.

    Parameters
    ----------
    value : array_like or PagedArray or PagedExpr
        What to copy.
    path : path, optional
        Where, as for :func:`empty`.
    dtype : dtype-like, optional
        The copy's dtype, the value's by default; values are cast while they are written, as by ``astype``.
    order, budget, pager, page
        As for :func:`empty`.

    Raises
    ------
    OverflowError, ValueError, TypeError
        If Python numbers do not fit the dtype, as in an assignment.
    """
    source = value
    if not isinstance(value, Operators):
        source = np.asarray(value) if dtype is None else converted(value, as_dtype(dtype))
    kind = source.dtype if dtype is None else dtype
    a = empty(source.shape, kind, path, order=order, budget=budget, pager=pager, page=page)
    if a.size:
        a[...] = source
    return a


def open(
    path: Path,
    mode: str = "r",
    *,
    budget: int | str | None = None,
    pager: Any = None,
    page: int | None = None,
) -> PagedArray:
    """Open a .npy file; nothing but its header is read.

    Parameters
    ----------
    path : path
        The file.
    mode : {"r", "r+"}
        For reading only, or to be written too. Whoever opens a file while a pager has it open to write sees
        every write through that pager at once. An array that was opened only to read before, or through
        another pager, does not: it goes on with what it has read, and calls that read all of it raise OSError
        (ESTALE) once the writes are in the file.
    budget, pager, page
        As for :func:`empty`.

    Raises
    ------
    FormatError
        If it is no .npy file, or a malformed or truncated one.
    TypeError
        If it holds Python objects.
    """
    if mode not in ("r", "r+"):
        raise ValueError(f"mode must be 'r' or 'r+', got {mode!r}; new files are made by pr.paged.empty")
    pager = pick_pager(budget, pager)
    file = pager.open(os.fspath(path), mode)
    shape, dtype, fortran, size, _ = _read_header(file)
    return from_file(
        file, size, shape, dtype, fortran=fortran, writable=mode == "r+", pager=pager, page=page, header=size
    )


# Saving and growing ------------------------------------------------------------------------------------


def save_array(source: Any, path: Path) -> None:
    """Write an array or expression to a .npy file, or to what ``pr.save`` makes of the name; atomic."""
    target = os.fspath(path)
    if not target.endswith(".npy"):
        from prunus.paged.save import save

        save(target, {getattr(source, "name", "") or "array": source})
        return
    folder = os.path.dirname(os.path.abspath(target))
    handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", suffix=".tmp", dir=folder)
    os.close(handle)
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        pager = _first_pager(source)
        work = empty(source.shape, source.dtype, name, pager=pager)
        assign(work, source)
        work.flush()
        work._store.file.sync()
        work._store.file.close()
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name itself
        finally:
            os.close(descriptor)


def _first_pager(source: Any) -> Any:
    from prunus.paged.expr import _arrays
    from prunus.paged.graph import as_node

    arrays = _arrays(as_node(source))
    return arrays[0].pager if arrays else None


def append(a: PagedArray, rows: Any) -> None:
    """Add rows at the end of ``a``; see :meth:`PagedArray.append`."""
    store = a._store
    if (
        not store.header
        or a._start
        or a.nbytes != store.nbytes
        or a._perm != tuple(range(a.ndim))
        or not a.shape
    ):
        raise PrunusError(
            f"{a!r} cannot grow: that takes a .npy file in C order, opened as a whole, and no view of it"
        )
    if isinstance(rows, Operators):
        check_kind(rows.dtype, a.dtype)
        more: Any = rows
    else:
        more = appended(rows, a.dtype)
    if more.ndim != a.ndim or more.shape[1:] != a.shape[1:]:
        raise ValueError(
            f"rows of shape {more.shape} do not fit; expected (n, {', '.join(map(str, a.shape[1:]))})"
        )
    count, old = more.shape[0], store.nbytes
    shape = (a.shape[0] + count, *a.shape[1:])
    with store.lock:
        version = store.file.read(6, 1)[0]
        header = _header(shape, a.dtype, False, store.header, version)
        store.grow(old + count * (more.size // max(count, 1)) * a.itemsize)
        try:
            grown = a._view(old, more.shape, a._perm)
            if isinstance(more, Operators):
                assign(grown, more)
            elif more.size:
                grown[...] = more
            store.segment.flush()  # the rows first, then the header that tells of them
            store.file.write(0, header)
            store.file.sync()
        except BaseException:
            store.grow(old)
            raise
        store.wrote()
        a._grown(count)
