"""Checkpoints in several files: an index that names them, or all files of a folder."""

from __future__ import annotations

import json
import os
from pathlib import PurePosixPath
from typing import Any, Final

from prunus._errors import FormatError

__all__ = ["find_shards", "is_index"]

_SUFFIX: Final = ".index.json"
_LARGEST: Final = 100_000_000  # bytes of an index, as of a header


def is_index(path: str) -> bool:
    """Say whether a path is that of an index by its name."""
    return path.endswith(_SUFFIX)


def find_shards(path: str) -> tuple[list[str], dict[str, str] | None]:
    """Return the files of a checkpoint, and which of them has each tensor if an index tells.

    Parameters
    ----------
    path : str
        An index, or a folder with one or with safetensors files.

    Raises
    ------
    FormatError
        If a folder has no such files or several indexes, or an index is damaged or points outside its folder.
    OSError
        If they cannot be read.
    """
    if not os.path.isdir(path):
        return _read_index(path)
    names = sorted(os.listdir(path))
    indexes = [name for name in names if name.endswith(f".safetensors{_SUFFIX}")]
    if len(indexes) == 1:
        return _read_index(os.path.join(path, indexes[0]))
    if indexes:
        raise FormatError(
            f"{path}: expected one index of a checkpoint, got {', '.join(indexes)}; open one of them"
        )
    files = [os.path.join(path, name) for name in names if name.endswith(".safetensors")]
    if not files:
        found = f"{len(names)} files of which none ends in .safetensors" if names else "an empty folder"
        raise FormatError(f"{path}: expected a folder with safetensors files, got {found}")
    return files, None


def _read_index(path: str) -> tuple[list[str], dict[str, str]]:
    with open(path, "rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise FormatError(f"{path}: expected an index of at most {_LARGEST} bytes")
    try:
        index = json.loads(text, object_pairs_hook=_without_duplicates)
        pairs = list(index["weight_map"].items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            f'{path}: expected JSON with "weight_map", the file of each tensor: {error}'
        ) from error
    folder = os.path.dirname(path)
    where: dict[str, str] = {}
    for name, shard in pairs:
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise FormatError(f"{path}: expected tensor {name!r} in a file beside the index, got {shard!r}")
        where[name] = os.path.join(folder, shard)
    return list(dict.fromkeys(where.values())), where


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found


def _stays_inside(shard: str) -> bool:
    """Say whether a path leads to a file in the same folder or below it, on every system."""
    parts = PurePosixPath(shard).parts
    return bool(parts) and ".." not in parts and parts[0] != "/" and not set(shard) & {"\0", "\\", ":"}
