"""Checksums of a file's pages: made while it is written, checked when asked.

The tensor ``__crc32c`` holds CRC-32C of: the header's bytes; each page of each other tensor, in the file's
order (the last page of a tensor may be short; tensors that fill gaps have none); and all of these numbers.
So every byte that means something is covered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus._errors import FormatError
from prunus.paged.headers import CHECKSUMS, TABLE, Header, load

__all__ = ["PAGE", "ChecksumError", "Checksums", "Mismatch", "Running"]

PAGE: Final = 64 << 10  # bytes of a page unless told otherwise
_READ: Final = 4 << 20


class ChecksumError(FormatError):
    """Bytes of a file are not those that were written."""


class Mismatch(NamedTuple):
    """A page whose bytes are not those that were written; -1 for the header and the table of checksums."""

    tensor: str
    page: int
    expected: int
    got: int

    def __str__(self) -> str:
        what = f"tensor {self.tensor!r}, page {self.page}" if self.page >= 0 else self.tensor
        return f"{what}: expected CRC-32C {self.expected:#010x}, got {self.got:#010x}"


def pages_of(nbytes: int, page: int) -> int:
    """Return how many pages a number of bytes has."""
    return -(-nbytes // page)


class Running:
    """Checksums of a tensor's pages whose bytes come in pieces of any size."""

    def __init__(self, page: int) -> None:
        self._page = page
        self._rest = np.empty(page, np.uint8)  # the beginning of a page that is not whole yet
        self._held = 0
        self._found: list[NDArray[np.uint32]] = []

    def add(self, data: NDArray[np.uint8]) -> None:
        """Take the next bytes."""
        if self._held:
            more = min(self._page - self._held, len(data))
            self._rest[self._held : self._held + more] = data[:more]
            self._held, data = self._held + more, data[more:]
            if self._held < self._page:
                return
            self._flush()
        whole = len(data) - len(data) % self._page
        if whole:
            self._found.append(_core.crc32c_pages(data[:whole], self._page))
        self._held = len(data) - whole
        self._rest[: self._held] = data[whole:]

    def _flush(self) -> None:
        if self._held:
            self._found.append(_core.crc32c_pages(self._rest[: self._held], self._page))
        self._held = 0

    def finish(self) -> NDArray[np.uint32]:
        """Return the checksums of all pages."""
        self._flush()
        return np.concatenate([np.zeros(0, np.uint32), *self._found])


def crc_of(data: bytes | NDArray[np.uint8]) -> np.uint32:
    """Return the CRC-32C of some bytes (at least one)."""
    flat = np.frombuffer(data, np.uint8)
    return np.uint32(_core.crc32c_pages(flat, len(flat))[0])


class Checksums:
    """The checksums that a file carries.

    Parameters
    ----------
    file : DiskFile
        The open file.
    header : Header
        What it holds.

    Raises
    ------
    FormatError
        If it has no checksums, or their table does not fit its tensors.
    """

    def __init__(self, file: Any, header: Header) -> None:
        path = os.fsdecode(file.path)
        text, table = header.metadata.get(CHECKSUMS), header.tensors.get(TABLE)
        if text is None or table is None:
            raise FormatError(f"{path}: has no checksums; pr.save(path, arrays, checksums=True) writes them")
        if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
            raise FormatError(
                f"{path}: expected the metadata {CHECKSUMS!r} to be bytes of a page, got {text!r}"
            )
        self.page = int(text)
        self.tensors = {name: one for name, one in header.tensors.items() if name != TABLE}
        self._file, self._header, self._path = file, header, path
        counts = [pages_of(one.nbytes, self.page) for one in self.tensors.values()]
        if table.dtype != "uint32" or table.shape != (sum(counts) + 2,):
            raise FormatError(
                f"{path}: expected {sum(counts) + 2} checksums (uint32) for its pages of {self.page} bytes, "
                f"got {table.shape} of {table.dtype}"
            )
        self.table: NDArray[np.uint32] = load(file, table)
        ends = np.cumsum([1, *counts]).tolist()
        self._first = dict(zip(self.tensors, ends, strict=False))

    def frame(self) -> Iterator[Mismatch]:
        """Check the header and the table itself."""
        got = crc_of(self.table[:-1].view(np.uint8))
        if got != self.table[-1]:
            yield Mismatch("the table of checksums", -1, int(self.table[-1]), int(got))
        got = crc_of(self._file.read(0, self._header.size))
        if got != self.table[0]:
            yield Mismatch("the header", -1, int(self.table[0]), int(got))

    def check(self, name: str, progress: Callable[[int], None] | None = None) -> Iterator[Mismatch]:
        """Read a tensor and yield its pages that are damaged; ``progress`` is told the bytes of each read."""
        tensor = self.tensors[name]
        if not tensor.nbytes:
            return
        step = max(_READ // self.page, 1) * self.page
        reader = self._file.segment(tensor.begin, tensor.nbytes, _READ).reader(0, tensor.nbytes, step)
        try:
            for at, panel in reader:
                first = at // self.page
                got = _core.crc32c_pages(panel, self.page)
                start = self._first[name] + first
                want = self.table[start : start + len(got)]
                for k in np.flatnonzero(got != want).tolist():
                    yield Mismatch(name, first + k, int(want[k]), int(got[k]))
                if progress is not None:
                    progress(len(panel))
        finally:
            reader.close()

    def require(self, name: str | None) -> None:
        """Check a tensor, or for None the header and the table.

        Raises
        ------
        ChecksumError
            If a page is damaged.
        """
        for mismatch in self.frame() if name is None else self.check(name):
            raise ChecksumError(f"{self._path}: {mismatch}")
