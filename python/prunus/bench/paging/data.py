"""Files of random values, made once: drives and virtual disks are quick with zeros."""

import json
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunus._progress import Progress

__all__ = ["HEADER", "Data", "cached", "drop", "npy_header", "remove", "square"]

# Values begin at a sector's start, as prunus writes them; NumPy reads headers of any length.
HEADER = 4096
_PIECE = 32 << 20


@dataclass(frozen=True, slots=True)
class Data:
    """An .npy file of float32 in [0, 1), whose shape can be told anew.

    Attributes
    ----------
    path : str
        Where it is.
    nbytes : int
        Bytes of values.
    total : float
        The sum of the values, in double precision.
    """

    path: str
    nbytes: int
    total: float

    @classmethod
    def make(cls, path: Path, nbytes: int, seed: int) -> "Data":
        """Write the file, or take what an earlier call with the same arguments wrote.

        Raises
        ------
        OSError
            If the disk does not take it.
        """
        wish = {"nbytes": nbytes, "seed": seed, "form": 1}
        note = path.with_name(path.name + ".json")
        if (found := _read_note(note)) and path.exists() and path.stat().st_size == HEADER + nbytes:
            total = found.pop("total", None)
            if found == wish and isinstance(total, float):
                return cls(str(path), nbytes, total)
        note.unlink(missing_ok=True)
        rng = np.random.Generator(np.random.SFC64(seed))
        piece = np.empty(min(_PIECE, nbytes) // 4, np.float32)
        total, left = 0.0, nbytes // 4
        with path.open("wb") as file, Progress(-(-left // len(piece)), f"writing {path.name}") as bar:
            file.write(npy_header((nbytes // 4,)))
            while left:
                part = piece[: min(left, len(piece))]
                rng.random(dtype=np.float32, out=part)
                total += float(part.sum(dtype=np.float64))
                file.write(part.tobytes())
                left -= len(part)
                bar.step()
            file.flush()
            os.fsync(file.fileno())
        note.write_text(json.dumps({**wish, "total": total}), encoding="utf-8")
        return cls(str(path), nbytes, total)

    def reshape(self, rows: int, columns: int) -> None:
        """Rewrite the header: the same values in another shape.

        Raises
        ------
        ValueError
            If the sizes differ.
        """
        if rows * columns * 4 != self.nbytes:
            raise ValueError(f"{rows} x {columns} float32 values are not {self.nbytes} bytes")
        with open(self.path, "r+b") as file:
            file.write(npy_header((rows, columns)))
            file.flush()
            os.fsync(file.fileno())

    def to_json(self) -> dict[str, Any]:
        """Return what a worker is told."""
        return asdict(self)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of float32, `HEADER` bytes long."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}"
    space = HEADER - 10
    return b"\x93NUMPY\x01\x00" + space.to_bytes(2, "little") + text.ljust(space - 1).encode() + b"\n"


def square(nbytes: int) -> tuple[int, int]:
    """Return the shape (rows, columns) of float32 values, about as high as wide.

    Both are powers of two times what cannot be divided, so that columns are whole sectors where that can be.
    """
    values = nbytes // 4
    columns = 1 << (math.isqrt(values).bit_length() - 1)
    while values % columns:
        columns //= 2
    return values // columns, columns


def drop(paths: Iterable[str]) -> None:
    """Take files out of the page cache.

    Raises
    ------
    OSError
        If a file cannot be opened.
    """
    for path in paths:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)  # what is not yet written cannot be dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def cached(paths: Iterable[str]) -> tuple[int, int]:
    """Count the bytes of files that are in the page cache, and all of their bytes.

    Returns
    -------
    present, size : int
        Rounded up to whole pages.
    """
    import ctypes

    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    present, size = 0, 0
    for path in paths:
        length = os.path.getsize(path)
        if not length:
            continue
        pages = -(-length // mmap.PAGESIZE)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ) as view:
            values = np.frombuffer(view, np.uint8)
            found = np.zeros(pages, np.uint8)
            failed = mincore(values.ctypes.data, length, found.ctypes.data)
            del values  # the map cannot be closed while it is looked at
            if failed:
                code = ctypes.get_errno()
                raise OSError(code, f"mincore: {os.strerror(code)}", path)
        present += int((found & 1).sum()) * mmap.PAGESIZE
        size += pages * mmap.PAGESIZE
    return present, size


def remove(paths: Iterable[Path]) -> None:
    """Delete files and the notes beside them, where they exist."""
    for path in paths:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".json").unlink(missing_ok=True)
