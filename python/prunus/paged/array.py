"""Arrays whose values are in a file."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from typing import Any, Final, Self

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import DTypeLike

from prunus._dtypes import Array, DType, as_dtype
from prunus._errors import PrunusError
from prunus._trace import span
from prunus.paged.access import Selection
from prunus.paged.indexing import NEW, Index, Whole, parse
from prunus.paged.operators import InPlace, Operators
from prunus.paged.pagers import Pager, compiled, default_pager
from prunus.paged.reading import check_file, reading
from prunus.paged.reducible import Reducible
from prunus.paged.store import Store, choose_page
from prunus.paged.values import converted

__all__ = ["PagedArray", "from_file"]

_CHUNK: Final = 16 << 20  # bytes of a chunk that other libraries are told of
_ITERATED: Final = 4 << 20  # bytes that iterating over rows reads at a time


class PagedArray(InPlace, Reducible):
    """An array in a file, read and written through a pager; made by ``pr.open`` and ``pr.paged``.

    Indexing returns ndarrays and reads the pages it touches, slices included: ``a.rows(begin, end)`` is the
    slice that reads nothing yet. NumPy's functions return a ``PagedExpr`` or, where they reduce, values.
    Views (``T``, ``reshape``, ``rows``) share the file's bytes. Medians, quantiles and
    percentiles are exact up to 65536 values along the axes; above that their rank is off by about 0.02 %, and
    rarely by more than four times that.
    """

    __slots__ = ("__weakref__", "_perm", "_start", "_store", "_stored", "dtype", "shape")

    def __init__(
        self, store: Store, start: int, stored: tuple[int, ...], perm: tuple[int, ...], dtype: DType
    ) -> None:
        self._store = store
        self._start = start  # in bytes, from the store's start
        self._stored = stored  # the shape in C order of storage
        self._perm = perm  # which stored axis each axis is
        self.shape = tuple(stored[axis] for axis in perm)
        self.dtype = dtype

    # What it is ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the file calls this array; may be empty."""
        return self._store.name

    @property
    def path(self) -> str:
        """The file's path; a temporary array's, which ``repr`` calls unlinked, is no longer there."""
        return os.fsdecode(self._store.file.path)

    @property
    def writable(self) -> bool:
        """Whether the values may be changed."""
        return self._store.writable

    @property
    def pager(self) -> Pager:
        """The pager whose budget of memory this array uses."""
        return Pager.of(self._store.pager)

    @property
    def chunks(self) -> tuple[int, ...]:
        """The shape of the boxes in which the array is best read: contiguous runs of about 16 MiB."""
        left = max(_CHUNK // max(self.itemsize, 1), 1)
        sizes = [1] * len(self._stored)
        for axis in reversed(range(len(self._stored))):
            sizes[axis] = max(min(self._stored[axis], left), 1)
            left //= sizes[axis]
        return tuple(sizes[axis] for axis in self._perm)

    def __repr__(self) -> str:
        label = f"{self.name!r} in " if self.name else ""
        mode = "" if self.writable else ", read-only"
        if self._closed:
            mode += ", closed"
        elif os.path.isabs(self.path) and not os.path.exists(self.path):
            mode += " (unlinked)"
        return f"<PagedArray {self.shape} {self.dtype}, {label}{self.path!r}{mode}>"

    @property
    def _closed(self) -> bool:
        """Whether the file is closed."""
        try:
            self._store.file.check()
        except OSError as error:  # changed under our feet, but open
            return error.errno == errno.EBADF
        except ValueError:
            return True
        return False

    def _check_open(self) -> None:
        """Raise ValueError, naming the file, if it is closed."""
        if self._closed:
            raise ValueError(f"{self.path}: the file is closed")

    # Views ---------------------------------------------------------------------------------------------

    def _view(self, start: int, stored: tuple[int, ...], perm: tuple[int, ...]) -> PagedArray:
        return PagedArray(self._store, start, stored, perm, self.dtype)

    @property
    def T(self) -> PagedArray:  # noqa: N802 - NumPy's name
        """The transpose, a view."""
        return self.transpose()

    def transpose(self, *axes: Any) -> PagedArray:
        """Return a view with the axes in another order; reversed if none is given.

        Raises
        ------
        ValueError
            If ``axes`` is no permutation of the axes.
        """
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = () if axes[0] is None else tuple(axes[0])
        order = [a % self.ndim if -self.ndim <= a < self.ndim else a for a in axes] or list(range(self.ndim))[
            ::-1
        ]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"axes {axes} don't match an array of {self.ndim} dimensions")
        return self._view(self._start, self._stored, tuple(self._perm[a] for a in order))

    def reshape(self, *shape: Any, order: str = "C") -> PagedArray:
        """Return a view of another shape.

        Raises
        ------
        ValueError
            If the sizes differ, or if it would take a copy: the values must be stored in the order that is
            asked.
        """
        if len(shape) == 1 and not isinstance(shape[0], int):
            shape = tuple(shape[0])
        sizes = [int(n) for n in shape]
        if sizes.count(-1) == 1:
            known = math.prod(n for n in sizes if n != -1)
            sizes[sizes.index(-1)] = self.size // known if known else 0
        if math.prod(sizes) != self.size or min(sizes, default=0) < 0:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {tuple(shape)}")
        axes = [a for a in self._perm if self._stored[a] != 1]  # axes of length 1 are anywhere
        backwards = order == "F"
        if order not in ("C", "F"):
            raise ValueError(f"order must be 'C' or 'F', got {order!r}")
        if axes != sorted(axes, reverse=backwards):
            raise ValueError(
                f"a view of shape {tuple(sizes)} in order {order} would need a copy: the values are "
                "stored in another order; reshape before transposing, or load()"
            )
        perm = tuple(range(len(sizes)))
        if backwards:
            return self._view(self._start, tuple(sizes[::-1]), perm[::-1])
        return self._view(self._start, tuple(sizes), perm)

    def ravel(self, order: str = "C") -> PagedArray:
        """Return a view of one dimension; see :meth:`reshape`."""
        return self.reshape(-1, order=order)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> PagedArray:
        """Return a view without axes of length 1, or without those that are named.

        Raises
        ------
        ValueError
            If a named one is longer.
        """
        gone = [n for n, size in enumerate(self.shape) if size == 1]
        if axis is not None:
            gone = list(normalize_axis_tuple(axis, self.ndim))
        if any(self.shape[n] != 1 for n in gone):
            raise ValueError("cannot select an axis to squeeze out which has size not equal to one")
        kept = sorted(self._perm[n] for n in range(self.ndim) if n not in gone)
        perm = tuple(kept.index(self._perm[n]) for n in range(self.ndim) if n not in gone)
        return self._view(self._start, tuple(self._stored[k] for k in kept), perm)

    def rows(self, start: int, stop: int | None = None) -> PagedArray:
        """Return a view of rows ``start`` to ``stop`` (as a slice has them) of the first axis.

        Raises
        ------
        ValueError
            If the first axis is not the slowest in the file: such rows are not one run of bytes.
        """
        if not self.shape:
            raise ValueError("an array of no dimensions has no rows")
        view = self._contiguous(parse(slice(start, stop), self.shape))
        if view is None:
            raise ValueError(
                "rows of this array are not stored one after the other; use .T.rows(...).T, or a[i:j]"
            )
        return view

    def _contiguous(self, index: Index) -> PagedArray | None:
        """Return the view that a basic index selects if it is one run of bytes, else None."""
        if index.group is not None:
            return None
        axes = [index.axes[self._perm.index(k)] for k in range(len(self._stored))]
        start, single = self._start, True  # single: so far one index along every axis
        sizes: dict[int, int] = {}
        for k, axis in enumerate(axes):
            stride = math.prod(self._stored[k + 1 :]) * self.itemsize
            if isinstance(axis, int):
                if not single:
                    return None
                start += axis * stride
            elif isinstance(axis, Whole):
                whole = axis.size == self._stored[k] and (axis.step == 1 or axis.size <= 1)
                if not whole and (not single or (axis.step != 1 and axis.size > 1)):
                    return None
                start += axis.start * stride if axis.size else 0
                single = single and axis.size == 1
                sizes[k] = axis.size
        kept = sorted(sizes)
        stored = [sizes[k] for k in kept]
        perm: list[int] = []
        for dim in index.order:
            if dim == NEW:
                perm.append(len(stored))
                stored.append(1)
            else:
                perm.append(kept.index(self._perm[dim]))
        return self._view(start, tuple(stored), tuple(perm))

    def _expand(self, ndim: int) -> PagedArray:
        """Return a view with axes of length 1 in front, ``ndim`` dimensions in all."""
        more = ndim - self.ndim
        if not more:
            return self
        perm = (*range(more), *(a + more for a in self._perm))
        return self._view(self._start, (1,) * more + self._stored, perm)

    # Reading and writing -------------------------------------------------------------------------------

    def _select(self, index: Index, exact: bool = False) -> Selection:
        return Selection(self._store, self._start, self._stored, self._perm, self.dtype, index, exact)

    def __getitem__(self, key: Any) -> Any:
        masked = _mask(key)
        if masked is not None and masked.shape == self.shape:
            from prunus.paged.expr import compress

            return compress(masked, self)
        index = parse(key, self.shape)
        selection = self._select(index)
        try:
            with span("getitem") as at:
                if at:
                    with reading(at, [self._store]):
                        found = selection.read()
                else:
                    found = selection.read()
        except ValueError:
            self._check_open()  # whose message says which file
            raise
        return found[()] if index.scalar else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check_writable()
        from prunus.paged.expr import PagedExpr, assign

        if not isinstance(value, Operators):
            value = converted(value, self.dtype)
        masked = _mask(key)
        if masked is not None and masked.shape == self.shape and np.ndim(value) == 0:
            assign(self, np.where(masked, value, self).astype(self.dtype))
            return
        index = parse(key, self.shape)
        if isinstance(value, (PagedArray, PagedExpr)):
            view = self._contiguous(index)
            if view is not None:
                assign(view, value)
                return
            value = value.load()
        values = np.asarray(value)
        extra = values.ndim - len(index.shape)
        if extra > 0 and values.shape[:extra] == (1,) * extra:
            values = values.reshape(values.shape[extra:])
        try:
            values = np.broadcast_to(values, index.shape)
        except ValueError:
            raise ValueError(
                f"could not broadcast input array from shape {np.shape(value)} into shape {index.shape}"
            ) from None
        self._store.wrote()
        try:
            self._select(index, exact=True).write(values)
        except ValueError:
            self._check_open()
            raise
        finally:
            self._store.wrote()

    def _check_writable(self) -> None:
        if not self._store.writable:
            raise ValueError(
                f"{self!r} cannot be written; open its file with pr.open(path, mode='r+') for that"
            )

    def load(self) -> Array:
        """Return all values as an ndarray, in the order in which they are stored."""
        check_file(self._store.file)
        full = Index(tuple(Whole(0, 1, n) for n in self.shape), None, tuple(range(self.ndim)), False)
        return self._select(full).read()

    def prefetch(self, key: Any = ...) -> None:
        """Have the pager fetch what ``a[key]`` would read; returns at once."""
        try:
            self._select(parse(key, self.shape)).prefetch()
        except ValueError:
            self._check_open()
            raise

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the first axis; rows are read some at a time."""
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        row = max(self.nbytes // max(len(self), 1), 1)
        step = max(_ITERATED // row, 1)
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the values to a new .npy file, or whatever ``pr.save`` makes of the name; atomic."""
        from prunus.paged.working import save_array

        save_array(self, path)

    def flush(self) -> None:
        """Write back what was changed and wait until it is on the disk.

        Raises
        ------
        OSError
            If the disk did not take it.
        """
        self._check_open()
        if self.writable:
            self._store.segment.flush()

    def close(self) -> None:
        """Flush, and close the file; the array and its views cannot be used afterwards.

        Closing it again does nothing. ``with pr.open(path) as a`` closes it at the end.
        """
        if not self._closed:
            self.flush()
            self._store.file.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, rows: Any) -> None:
        """Add rows at the end of the first axis; the file grows.

        The new rows are on disk before the header tells of them. Views made before keep their shape.

        Parameters
        ----------
        rows : array_like or PagedArray or PagedExpr, shape (n, *a.shape[1:])
            What to add. Python numbers are converted to the array's dtype as in an assignment; arrays are
            cast as ``np.concatenate(..., dtype=a.dtype)`` does.

        Raises
        ------
        PrunusError
            If the file holds more than this array, or the array is a view or in Fortran order.
        TypeError
            If the values are of a kind that is not cast, as floats for integers.
        OverflowError, ValueError
            If Python numbers are out of the dtype's range, or the shapes do not fit.
        """
        self._check_writable()
        self._check_open()
        from prunus.paged.working import append

        append(self, rows)

    def _grown(self, more: int) -> None:
        """Take note that the first axis has become longer."""
        self._stored = (self._stored[0] + more, *self._stored[1:])
        self.shape = self._stored

    # Copying and pickling ------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        self.flush()
        try:
            state = os.stat(self.path)
        except OSError as error:
            raise TypeError(
                f"an array pickles by the path of its file, and {self.path!r} is not there: {error.strerror}"
            ) from None
        identity = (state.st_dev, state.st_ino) if self.writable else (state.st_size, state.st_mtime_ns)
        store = self._store
        place = (os.path.abspath(self.path), store.start, store.nbytes, store.name, store.header)
        view = (self._start, self._stored, self._perm, self.dtype.name, self.dtype.str, self.writable)
        return _unpickle, (place, view, identity)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what names this array's present values, without reading them."""
        store = self._store
        file = store.file
        place = (file.path, store.start, self._start, self._stored, self._perm, str(self.dtype))
        return (type(self).__name__, id(store.version), store.version.value, *place)


def _mask(key: Any) -> Any:
    """Return a boolean array or expression on disk that is used as an index, else None."""
    from prunus.paged.expr import PagedExpr

    return key if isinstance(key, (PagedArray, PagedExpr)) and key.dtype == bool else None


def _unpickle(place: tuple[Any, ...], view: tuple[Any, ...], identity: tuple[int, int]) -> PagedArray:
    path, begin, nbytes, name, header = place
    start, stored, perm, dtype_name, dtype_str, writable = view
    state = os.stat(path)
    if identity != ((state.st_dev, state.st_ino) if writable else (state.st_size, state.st_mtime_ns)):
        raise OSError(errno.ESTALE, "the file was replaced or changed since the array was pickled", path)
    dtype = as_dtype("bfloat16") if dtype_name == "bfloat16" else np.dtype(dtype_str)
    pager = compiled(default_pager())
    file = pager.open(path, "r+" if writable else "r")
    page = choose_page(stored, dtype, writable, pager.budget)
    store = Store(pager, file, begin, nbytes, page, writable, name, header)
    return PagedArray(store, start, stored, perm, dtype)


def from_file(
    file: Any,
    offset: int,
    shape: tuple[int, ...],
    dtype: DTypeLike | str,
    *,
    fortran: bool = False,
    writable: bool = False,
    name: str = "",
    pager: Any = None,
    page: int | None = None,
    header: int = 0,
) -> PagedArray:
    """Return an array whose values lie in an open file.

    Parameters
    ----------
    file : DiskFile
        The file; it must have been opened by ``pager``.
    offset : int
        Where the values begin, in bytes.
    shape : tuple of int
        The array's shape.
    dtype : dtype-like
        The array's dtype; ``"bfloat16"`` is one.
    fortran : bool
        Whether the first axis runs fastest.
    writable : bool
        Whether the array may be written; the file must be open for that.
    name : str
        What messages call it.
    pager : Pager, optional
        The pager of the file; the shared one if not given.
    page : int, optional
        Bytes of a page in random access; by default chosen by the length of a row.
    header : int
        Bytes of the .npy header if the file is this array and nothing else, which then can grow; or 0.

    Raises
    ------
    PrunusError
        If the values would lie outside the file.
    TypeError
        If the dtype holds Python objects.
    ValueError
        If the array is to be written and the file is not.
    """
    kind = as_dtype(dtype)
    if kind.hasobject or kind.itemsize == 0:
        raise TypeError(f"dtype {kind} cannot be in a file that is read page by page")
    sizes = tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes):
        raise PrunusError(f"shape {sizes} of {name or 'an array'} has a negative size")
    pager = compiled(default_pager() if pager is None else pager)
    stored = sizes[::-1] if fortran else sizes
    if page is None:
        page = choose_page(stored, kind, writable, pager.budget)
    nbytes = math.prod(sizes) * kind.itemsize
    store = Store(pager, file, offset, nbytes, page, writable, name, header)
    perm = tuple(range(len(sizes)))
    return PagedArray(store, 0, stored, perm[::-1] if fortran else perm, kind)
