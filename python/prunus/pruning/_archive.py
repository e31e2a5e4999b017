"""Named arrays in an .npz file: written whole or not at all, and read without pickle."""

from __future__ import annotations

import contextlib
import os
import secrets
import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from prunus._dtypes import Array

__all__ = ["read_archive", "write_archive"]


def write_archive(path: str | PathLike[str], parts: Mapping[str, Any]) -> None:
    """Write arrays to a file under exactly this name, replacing one that is there.

    Raises
    ------
    OSError
        If that fails; an earlier file is untouched then.
    """
    target = os.fspath(path)
    beside = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with open(beside, "xb") as file:
            np.savez(file, **parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def read_archive(path: str | PathLike[str]) -> dict[str, Array]:
    """Read what :func:`write_archive` wrote.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no such file, or damaged.
    """
    with open(path, "rb") as file:
        # NumPy takes what is no archive for a pickle, and its message speaks of that.
        if not zipfile.is_zipfile(file):
            raise ValueError("expected an .npz file, which is a zip archive; this is none, or cut short")
        file.seek(0)
        # For a damaged file zipfile, zlib and NumPy raise errors of many kinds; the file is at fault in all.
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:
            why = "it holds Python objects" if "pickle" in str(error) else str(error) or type(error).__name__
            raise ValueError(f"expected an .npz file of arrays of numbers, but {why}") from error
