"""``pr.open``: files of tensors as mappings, read with direct I/O as far as they are used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, SupportsIndex, TypeAlias

from prunus._dtypes import DType
from prunus._errors import FormatError, PrunusError
from prunus.paged.array import PagedArray, from_file
from prunus.paged.checksums import Checksums, Mismatch
from prunus.paged.headers import (
    CHECKSUMS,
    Blocks,
    Header,
    Layer,
    Tensor,
    is_npy,
    numpy_dtype,
    read_header,
    read_npy,
)
from prunus.paged.layers import PagedFFN
from prunus.paged.pagers import panel_of, pick_pager
from prunus.paged.shards import find_shards, is_index
from prunus.paged.sparse import PagedBSR

__all__ = ["File", "open_file"]

PathLike: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_MODES: Final = ("r", "r+")
# How files begin that are often taken for one of ours, and what to do with them.
_OTHERS: Final = {
    b"GGUF": "a GGUF file; `python -m prunus pack IN OUT.safetensors` converts it",
    b"PK\x03\x04": "a zip archive, as .npz files and those of torch.save are; save its arrays with pr.save",
    b"\x89HDF": "an HDF5 file; save its arrays with pr.save",
}


class Part(NamedTuple):
    """One open file of a checkpoint."""

    file: Any
    header: Header


class File(Mapping[str, "PagedArray | PagedBSR | PagedFFN"]):
    """An open safetensors file, or a checkpoint of several, as a mapping of names to arrays; see ``pr.open``.

    Arrays keep the file open: they go on working after the mapping is gone, until it is closed.
    """

    def __init__(
        self, path: str, pager: Any, parts: list[Part], where: dict[str, Part], writable: bool, verify: bool
    ) -> None:
        self.path = path
        self._pager = pager
        self._parts = parts
        self._where = where
        self._writable = writable
        self._checks = {id(part.file): Checksums(*part, panel_of(pager)) for part in parts} if verify else {}
        self._sound: set[str] = set()  # what was verified already
        self._arrays: dict[str, PagedArray | PagedBSR | PagedFFN] = {}
        self._closed = False
        for checks in self._checks.values():
            checks.require(None)

    # A mapping -----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> PagedArray | PagedBSR | PagedFFN:
        part = self._part(name)
        found = self._arrays.get(name)
        if found is None:
            if id(part.file) in self._checks:
                for one in self._tensors(name):
                    self._verify_once(part, one.name)
            found = self._arrays[name] = self._open(part, name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def _part(self, name: str) -> Part:
        if self._closed:
            raise ValueError(f"{self.path}: the file is closed")
        try:
            return self._where[name]
        except (KeyError, TypeError):
            raise KeyError(f"{self.path} has no {name!r}; it has {_some(list(self._where))}") from None

    def _open(self, part: Part, name: str) -> PagedArray | PagedBSR | PagedFFN:
        blocks = part.header.blocks.get(name)
        writable, pager = self._writable, self._pager
        if name in part.header.layers:
            return PagedFFN.from_file(part.file, part.header.layers[name], name, pager)
        if blocks is not None:
            return PagedBSR.from_file(part.file, blocks, name, writable, pager)
        one = part.header.tensors[name]
        dtype = numpy_dtype(one)
        return from_file(
            part.file, one.begin, one.shape, dtype, writable=writable, name=one.name, pager=pager
        )

    def _verify_once(self, part: Part, name: str) -> None:
        if name not in self._sound:
            self._checks[id(part.file)].require(name)
            self._sound.add(name)

    def _tensors(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors that an array is made of."""
        header = self._part(name).header
        if name in header.layers:
            return header.layers[name].tensors
        blocks = header.blocks.get(name)
        return (header.tensors[name],) if blocks is None else (blocks.values, blocks.indices, blocks.indptr)

    # What is in it ---------------------------------------------------------------------------------------

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array; nothing is read."""
        return {name: self.describe(name).shape for name in self}

    @property
    def dtypes(self) -> dict[str, DType]:
        """The dtype of each array, of a block-sparse one that of its values; nothing is read.

        Raises
        ------
        PrunusError
            If NumPy has no such dtype.
        """
        return {name: numpy_dtype(self._tensors(name)[0]) for name in self}

    @property
    def metadata(self) -> dict[str, str]:
        """What the writer told of the file, without what prunus put there for itself."""
        return {key: value for part in self._parts for key, value in part.header.user_metadata.items()}

    @property
    def files(self) -> list[str]:
        """Paths of the files: one, or the parts of a checkpoint."""
        return [os.fsdecode(part.file.path) for part in self._parts]

    @property
    def has_checksums(self) -> bool:
        """Whether all pages have checksums."""
        return all(CHECKSUMS in part.header.metadata for part in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(one.nbytes for name in self for one in self._tensors(name))

    def describe(self, name: str) -> Tensor | Blocks | Layer:
        """Return how an array is stored; nothing is read.

        Returns
        -------
        Tensor, Blocks or Layer
            For a dense array its tensor, for a block-sparse one and a layer its sizes and component tensors.
        """
        header = self._part(name).header
        return header.blocks.get(name) or header.layers.get(name) or header.tensors[name]

    @property
    def layers(self) -> list[str]:
        """Names of the feed-forward layers."""
        return [name for name in self if name in self._part(name).header.layers]

    def layer(self, name: str, resident: str | None = None) -> PagedFFN:
        """Return a feed-forward layer, and say whether the matrix that decides stays in memory.

        Parameters
        ----------
        name : str
            Which one.
        resident : {"panel", "none"}, optional
            It stays by default where it takes at most a quarter of the budget.

        Raises
        ------
        KeyError
            If there is none of that name.
        """
        if name not in self.layers:
            raise KeyError(f"{self.path} has no layer {name!r}; it has {_some(self.layers)}")
        part = self._part(name)
        if id(part.file) in self._checks:
            for one in self._tensors(name):
                self._verify_once(part, one.name)
        found = PagedFFN.from_file(part.file, part.header.layers[name], name, self._pager, resident)
        self._arrays[name] = found
        return found

    # Reading ---------------------------------------------------------------------------------------------

    def prefetch(self, names: str | Iterable[str]) -> None:
        """Have the pager fetch arrays that will be used soon, as far as its budget goes; returns at once.

        Raises
        ------
        KeyError
            If a name is not in the file.
        """
        for name in [names] if isinstance(names, str) else names:
            self[name].prefetch()

    def verify(self) -> list[Mismatch]:
        """Read everything and compare it with the checksums; return the pages that differ.

        Raises
        ------
        FormatError
            If the file has no checksums.
        """
        found: list[Mismatch] = []
        for checks in self.checksums():
            found += checks.frame()
            for name in checks.tensors:
                found += checks.check(name)
        return found

    def checksums(self) -> list[Checksums]:
        """Return the checksums of each file.

        Raises
        ------
        FormatError
            If a file has none.
        """
        return [Checksums(*part, panel_of(self._pager)) for part in self._parts]

    def flush(self) -> None:
        """Write back what was changed, and wait until it is on the disk."""
        for array in self._arrays.values():
            if not isinstance(array, PagedFFN):  # never written
                (array.values if isinstance(array, PagedBSR) else array).flush()

    def close(self) -> None:
        """Flush and close; the arrays that came from here cannot be used afterwards."""
        if self._closed:
            return
        try:
            if self._writable:
                self.flush()
        finally:
            self._closed = True
            for part in self._parts:
                part.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        from prunus._format import size_text

        state = ", closed" if self._closed else f", {size_text(self.nbytes)}"
        return f"<prunus.paged.File {self.path!r}: {len(self)} arrays{state}>"


def open_file(
    path: PathLike,
    budget: SupportsIndex | str | None = None,
    pager: Any = None,
    mode: str = "r",
    verify: bool = False,
) -> File | PagedArray:
    """Open a file of tensors; nothing but its header is read.

    Parameters
    ----------
    path : str, bytes or path-like
        A ``.safetensors`` file as any program wrote it; an ``.npy`` file; ``model.safetensors.index.json``
        or the folder of a checkpoint in several files. What a file is, its first bytes tell, not its name.
    budget : int or str, optional
        Bytes of memory that a pager of its own may hold, such as ``"512 MiB"``; the default pager otherwise.
    pager : Pager, optional
        The pager to use, instead of ``budget``.
    mode : {"r", "r+"}
        Whether arrays can be written in place. Shapes never change.
    verify : bool
        Compare what is read with the file's checksums: the header now, an array when it is first taken out.

    Returns
    -------
    File or PagedArray
        A mapping of names to :class:`PagedArray` or, where blocks are stored, :class:`PagedBSR`; for
        ``.npy`` the array itself.

    Raises
    ------
    OSError
        If it cannot be opened.
    FormatError
        If it is no such file, cut or damaged; a ``ValueError`` too. Nothing of it was trusted then.
    ValueError
        If arguments do not fit each other.

    Examples
    --------
    >>> import os, tempfile, numpy as np, prunus as pr
    >>> path = os.path.join(tempfile.mkdtemp(), "m.safetensors")
    >>> pr.save(path, {"w": np.eye(3, dtype=np.float32)})  # doctest: +SKIP
    >>> with pr.open(path, budget="64 MiB") as f:  # doctest: +SKIP
    ...     f["w"][1]
    array([0., 1., 0.], dtype=float32)
    """
    if mode not in _MODES:
        raise ValueError(
            f"mode must be 'r' or 'r+', got {mode!r}; new files are made by pr.save, or by pr.paged.empty or "
            "pr.paged.zeros to be written piece by piece"
        )
    text = os.fsdecode(path)
    using = pick_pager(budget, pager)
    if os.path.isdir(text) or is_index(text):
        files, index = find_shards(text)
        return _open_safetensors(text, using, files, index, mode, verify)
    file = _open_regular(using, text, mode)
    try:
        other = _OTHERS.get(file.read(0, min(4, file.size)))
        if other is not None:
            raise FormatError(f"{text}: expected a safetensors or .npy file, this is {other}")
        if not is_npy(file):
            return _file_of(text, using, [Part(file, _header_of(text, file))], None, mode, verify)
        if verify:
            raise FormatError(f"{text}: an .npy file has no checksums")
        tensor, fortran = read_npy(file)
        # Only a file that is this array and nothing else can grow.
        alone = not fortran and tensor.end == file.size
        return from_file(
            file,
            tensor.begin,
            tensor.shape,
            numpy_dtype(tensor),
            fortran=fortran,
            writable=mode == "r+",
            pager=using,
            header=tensor.begin if alone else 0,
        )
    except BaseException:
        file.close()
        raise


def _header_of(path: str, file: Any) -> Header:
    """Read a file's header; one that neither is nor is called a safetensors file is told to be none."""
    try:
        return read_header(file)
    except FormatError as error:
        start = file.read(0, min(9, file.size))
        # What has a header of a size that fits is a damaged file of this format, whatever its name.
        fits = len(start) == 9 and int.from_bytes(start[:8], "little") <= file.size - 8 and start[8:] == b"{"
        if fits or path.lower().endswith(".safetensors"):
            raise
        what = "is neither" if file.size else "is empty"
        raise FormatError(f"{path}: expected a safetensors or .npy file, this {what}") from error


def _open_regular(pager: Any, path: str, mode: str) -> Any:
    """Open a file, but no device or pipe: reading those may hang."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
        raise FormatError(f"{path}: expected a file, got {what}")
    return pager.open(path, mode)


def _open_safetensors(
    path: str, pager: Any, files: list[str], index: dict[str, str] | None, mode: str, verify: bool
) -> File:
    with ExitStack() as opened:
        parts = []
        for one in files:
            file = _open_regular(pager, one, mode)
            opened.callback(file.close)
            parts.append(Part(file, read_header(file)))
        found = _file_of(path, pager, parts, index, mode, verify)
        opened.pop_all()
        return found


def _file_of(
    path: str, pager: Any, parts: list[Part], index: dict[str, str] | None, mode: str, verify: bool
) -> File:
    where: dict[str, Part] = {}
    for part in parts:
        own = os.fsdecode(part.file.path)
        for name in part.header.names:
            if index is not None and not _listed(part.header, name, index, own):
                continue
            if name in where:
                raise FormatError(f"{path}: {name!r} is in {os.fsdecode(where[name].file.path)} and in {own}")
            where[name] = part
    if index is not None:
        there = {os.fsdecode(part.file.path): part.header.tensors for part in parts}
        missing = [f"{name!r} in {file}" for name, file in index.items() if name not in there[file]]
        if missing:
            raise FormatError(f"{path}: the index tells of {_some(missing)}, but it is not there")
    if mode == "r+" and any(CHECKSUMS in part.header.metadata for part in parts):
        raise PrunusError(
            f"{path}: has checksums, which writing in place would make wrong; open it with mode='r'"
        )
    return File(path, pager, parts, where, mode == "r+", verify)


def _listed(header: Header, name: str, index: dict[str, str], own: str) -> bool:
    """Say whether an index puts an array into this file."""
    blocks = header.blocks.get(name)
    if name in header.layers:
        return index.get(header.layers[name].bundle.name) == own
    return index.get(name if blocks is None else blocks.values.name) == own


def _some(names: list[str]) -> str:
    """Name a few of many."""
    few = ", ".join(map(str, names[:5])) or "nothing"
    return few if len(names) <= 5 else f"{few} and {len(names) - 5} more"
