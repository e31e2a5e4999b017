"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus.paged.pagers import panel_of

__all__ = ["Output"]


class Output:
    """A new file under a temporary name, which takes its own name when all of it is on the disk.

    As a context manager: bytes are written in order; leaving without an error makes the file durable
    (fsync), puts it in the place of what was there (rename) and makes that durable (fsync of the folder).
    Leaving with an error, Ctrl-C included, removes it (at the latest when the error is forgotten) and leaves
    what was there. Only a killed process leaves the temporary file behind: ``.prunus-*.tmp`` in the same
    folder, which may be deleted.

    Parameters
    ----------
    path : str
        The file's name. If it is a symbolic link, what it points to is replaced.
    size : int
        Bytes that will be written.
    pager : Pager
        What writes.
    """

    def __init__(self, path: str, size: int, pager: Any) -> None:
        self._path = os.path.realpath(path)
        if os.path.isdir(self._path):
            raise IsADirectoryError(21, "expected the name of a file, this is a folder", path)
        self._folder = os.path.dirname(self._path)
        if not os.path.isdir(self._folder):  # said of the file's own name, before anything is made ready
            raise FileNotFoundError(2, "there is no folder to write this file into", path)
        # Not made from the file's name, which may be as long as a name can be.
        self._temporary = os.path.join(self._folder, f".prunus-{secrets.token_hex(8)}.tmp")
        self._size = size
        self._pager = pager
        self._file: Any = None
        self._writer: Any = None
        self._panel: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._filled = 0
        self._left = size
        # Ctrl-C may come before the first line of what tidies up: then the file goes with this object. It is
        # the last attribute, so that what has the file open goes before it.
        self._leftover = _core.Leftover(self._temporary)

    def __enter__(self) -> Self:
        try:
            self._file = self._pager.open(self._temporary, "x+", self._size)
            if self._size:
                panel = panel_of(self._pager)
                self._writer = self._file.segment(0, self._size, panel).writer(0, self._size, panel)
        except BaseException as error:
            self._name(error)
            self._remove()
            raise
        return self

    def _name(self, error: BaseException | None) -> None:
        """Have an error name the file that is written, not the one that is there meanwhile."""
        name = getattr(error, "filename", None) if isinstance(error, OSError) else None
        if isinstance(error, OSError) and name is not None and os.fsdecode(name) == self._temporary:
            error.filename = self._path

    def write(self, data: NDArray[np.uint8]) -> None:
        """Append bytes.

        Raises
        ------
        OSError
            If the disk did not take these or earlier ones.
        ValueError
            If there are more than were announced.
        """
        if len(data) > self._left:
            raise ValueError(f"{len(data)} bytes for a file that expected {self._left} more")
        self._left -= len(data)
        while len(data):
            if self._filled == len(self._panel):
                self._panel, self._filled = self._writer.panel(), 0
            count = min(len(self._panel) - self._filled, len(data))
            self._panel[self._filled : self._filled + count] = data[:count]
            self._filled, data = self._filled + count, data[count:]
            if self._filled == len(self._panel):
                self._panel, self._filled = np.empty(0, np.uint8), 0  # its memory is the writer's again
                self._writer.put()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._name(error)
            if kind is None:
                self._finish()
        except OSError as refused:
            self._name(refused)
            raise
        finally:
            # After the rename there is nothing under this name.
            self._remove()

    def _finish(self) -> None:
        if self._left:
            raise ValueError(f"the file expected {self._left} more bytes than were written")
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._file.sync()
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self._temporary, os.stat(self._path).st_mode & 0o7777)
        os.replace(self._temporary, self._path)
        sync_folder(self._folder)

    def _remove(self) -> None:
        # What fails here fails because of the error that brought us here, and that one is the one to see.
        self._panel = np.empty(0, np.uint8)
        writer, self._writer = self._writer, None
        try:
            for opened in (writer, self._file):
                if opened is not None:
                    with contextlib.suppress(OSError):
                        opened.close()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable, where the system has that notion."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
