"""Named arrays in an .npz file: written whole or not at all, and read without pickle."""

from __future__ import annotations

import contextlib
import os
import secrets
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
        # For a damaged file zipfile, zlib and NumPy raise errors of many kinds; the file is at fault in all.
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:
            raise ValueError(f"damaged, or no .npz file: {error}") from error
