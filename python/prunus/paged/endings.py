"""What the ending of a file's name says of its format: a file is never written under a name that misleads."""

from __future__ import annotations

import os
from typing import Any, Final

__all__ = ["is_npy_name", "require_npy", "require_safetensors"]

_NPY: Final = ".npy"
# Formats of arrays and models that are not written here. Other endings mean nothing to us, and are free.
_OTHERS: Final = frozenset(
    {
        ".bin",
        ".csv",
        ".ckpt",
        ".feather",
        ".ggml",
        ".gguf",
        ".h5",
        ".hdf",
        ".hdf5",
        ".joblib",
        ".json",
        ".mat",
        ".msgpack",
        ".nc",
        ".npz",
        ".onnx",
        ".parquet",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".tfrecord",
        ".tiff",
        ".tsv",
        ".txt",
        ".zarr",
        ".zip",
    }
)


def is_npy_name(path: Any) -> bool:
    """Say whether a name asks for an .npy file."""
    return _ending(path) == _NPY


def require_safetensors(path: Any) -> None:
    """Raise ValueError if a name that a safetensors file is to have is that of another format."""
    end = _ending(path)
    if end == _NPY:
        raise ValueError(
            f"{_text(path)}: .npy holds one dense array and nothing else; choose a name that ends in "
            ".safetensors"
        )
    if end in _OTHERS:
        raise ValueError(f"{_text(path)}: {_refused(end)}")


def require_npy(path: Any) -> None:
    """Raise ValueError if a name that an .npy file is to have is that of another format; None is no name."""
    end = "" if path is None else _ending(path)
    if end == ".safetensors":
        raise ValueError(
            f"{_text(path)}: working memory is an .npy file; choose a name that ends in .npy, or write "
            ".safetensors with pr.save"
        )
    if end in _OTHERS:
        raise ValueError(f"{_text(path)}: {_refused(end)}")


def _refused(end: str) -> str:
    return (
        f"{end} files are not written here; choose a name that ends in .safetensors, or in .npy for one array"
    )


def _text(path: Any) -> str:
    return os.fsdecode(path)


def _ending(path: Any) -> str:
    return os.path.splitext(_text(path))[1].lower()
