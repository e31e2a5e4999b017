"""Trained models as safetensors files whose block-sparse weights ``prunus.open`` runs from disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from prunus import _bsr
from prunus._errors import FormatError
from prunus.interop.torch import as_array, as_tensor
from prunus.paged.array import PagedArray
from prunus.paged.files import File, open_file
from prunus.paged.layers import PagedFFN
from prunus.paged.save import save
from prunus.paged.sparse import PagedBSR
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.packed import FFN
from prunus.torch.arrays import BSR
from prunus.torch.nn.ffn import PrunedFFN
from prunus.torch.nn.linear import BlockSparseLinear

if TYPE_CHECKING:
    from prunus.paged.files import PathLike

__all__ = ["load_weights_", "save_weights"]

_PARTS = ("values", "indices", "indptr")
_MATRICES = ("w_up", "w_down", "w_gate", "b_up", "b_down")
# What a layer that is the whole model is called in a file.
_ROOT = "weight"
_ROOT_FFN = "ffn"


def save_weights(
    model: torch.nn.Module | Mapping[str, torch.Tensor | BSR | FeedForward],
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    checksums: bool = False,
) -> None:
    """Write a model's parameters and buffers to a safetensors file; whole or not at all.

    A :class:`BlockSparseLinear` at ``layers.0.up`` is the block-sparse array ``"layers.0.up"`` of the file,
    (out, in), beside its bias ``"layers.0.up.bias"``: ``prunus.open(path)["layers.0.up"] @ x`` computes from
    the disk, without torch. A :class:`PrunedFFN` at ``layers.0.ffn`` is the layer ``"layers.0.ffn"``, packed
    as its ``decide`` says: ``prunus.open(path)["layers.0.ffn"](x, activation, prune, branch)`` reads what is
    live. A layer that is the whole model is called ``"weight"``, or ``"ffn"``. To any other reader of
    safetensors the file has the tensors of the model's state dict under their names, but for the matrices of
    PrunedFFNs, which are the tables ``panel`` and ``bundle`` there.

    Parameters
    ----------
    model : Module or mapping
        The model; or tensors, :class:`BSR` and ``prunus.FFN`` by name.
    path : str, bytes or path-like
        Where to; the name ends in ``.safetensors``.
    metadata : mapping of str to str, optional
        Kept beside the tensors.
    checksums : bool
        Adds a CRC-32C for each page.

    Raises
    ------
    TypeError
        If something is no tensor, such as a module's extra state, or of a dtype that files do not have, or
        the matrices of a PrunedFFN have several dtypes.
    ValueError
        If the path has another ending, or a BSR is a transpose.
    OSError
        If the disk is full or refuses; what was there is untouched then.

    Notes
    -----
    Tensors in host memory are written from where they are; those on a GPU are copied to the host before.
    Tensors that modules share are written under each of their names. What is no weight (activation, policy,
    branch, and a mask) is not in the file; thresholds that learn are, as ``"layers.0.ffn.prune.log_tau"``.

    Examples
    --------
    >>> import os, tempfile, torch
    >>> import prunus as pr, prunus.torch as pt
    >>> model = torch.nn.Sequential(pt.nn.BlockSparseLinear(64, 64, blocksize=16))
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> pt.save_weights(model, path)
    >>> with pr.open(path) as f:
    ...     f["0"]
    <prunus.paged.PagedBSR (64, 64) float32: 2 blocks of 16 x 16 on disk, density 0.125, 2.0 KiB>
    """
    named = _of_model(model) if isinstance(model, torch.nn.Module) else dict(model)
    save(path, {name: _array(value, name) for name, value in named.items()}, metadata, checksums)


def load_weights_(model: torch.nn.Module, path: PathLike, strict: bool = True) -> Any:
    """Read a file of :func:`save_weights` into a model, whose layers take the patterns of the file.

    Parameters
    ----------
    model : Module
        A model of the same modules; its block-sparse layers may have other numbers of blocks.
    path : str, bytes or path-like
        The file.
    strict : bool
        As for ``load_state_dict``.

    Returns
    -------
    NamedTuple
        What ``load_state_dict`` returns: missing and unexpected keys.

    Raises
    ------
    RuntimeError
        If the file does not fit the model.
    FormatError
        If it is no such file, or damaged.
    OSError
        If it cannot be read.
    """
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    shapes: dict[str, Any] = {}
    root, alone = isinstance(model, BlockSparseLinear), isinstance(model, PrunedFFN)
    with _opened(path) as file:
        for name in file:
            found = file[name]
            if isinstance(found, PagedBSR):
                array = found.load()
                prefix = "" if root and name == _ROOT else f"{name}."
                shapes[prefix[:-1]] = {"version": 1, "shape": array.shape}
                parts = array._values(), array._indices, array._indptr
                state.update((prefix + part, as_tensor(one)) for part, one in zip(_PARTS, parts, strict=True))
            elif isinstance(found, PagedFFN):
                prefix = "" if alone and name == _ROOT_FFN else f"{name}."
                state.update((prefix + key, one) for key, one in _matrices(found.load()).items())
            elif isinstance(found, PagedArray):
                state[name] = as_tensor(found.load())
            else:
                raise FormatError(f"{os.fsdecode(path)}: {name!r} is a {type(found).__name__}, not weights")
    state._metadata = shapes  # type: ignore[attr-defined]  # as torch keeps what is told beside tensors
    return model.load_state_dict(state, strict=strict)


def _opened(path: PathLike) -> File:
    file = open_file(path)
    if not isinstance(file, File):
        raise FormatError(f"{os.fsdecode(path)}: expected a safetensors file, this is one array")
    return file


def _of_model(model: torch.nn.Module) -> dict[str, Any]:
    """Return what to save, by name: the state dict, with what belongs to a block-sparse layer together."""
    named: dict[str, Any] = dict(model.state_dict())
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        # A parametrised layer keeps its parts under other names: they stay what they are.
        if isinstance(module, BlockSparseLinear) and all(prefix + part in named for part in _PARTS):
            for part in _PARTS:
                del named[prefix + part]
            named[name or _ROOT] = module.weight
        elif isinstance(module, PrunedFFN) and all(prefix + part in named for part in _MATRICES[:2]):
            parts = {part: named.pop(prefix + part, None) for part in _MATRICES}
            named[name or _ROOT_FFN] = _layer(parts, module.decide, name or type(module).__name__)
    return named


def _layer(parts: Mapping[str, torch.Tensor | None], decide: str, name: str) -> FFN:
    """Return a layer to be saved, of the matrices where they are."""
    there = {key: one for key, one in parts.items() if one is not None}
    kinds = {str(there[key].dtype) for key in _MATRICES[:3] if key in there}
    if len(kinds) > 1:
        raise TypeError(f"{name}: expected matrices of one dtype, got {' and '.join(sorted(kinds))}")
    given = {key: _array(one, f"{name}.{key}") for key, one in there.items()}
    rest = given.get("w_gate"), decide, given.get("b_up"), given.get("b_down")
    return FFN._over(given["w_up"], given["w_down"], *rest)


def _matrices(layer: FFN) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer under the names that a PrunedFFN has for them."""
    found = (layer._up, layer._down.T, layer._gate, layer._b_up, layer._b_down)
    # Copies: what belongs to a layer is read-only.
    return {key: as_tensor(one.copy()) for key, one in zip(_MATRICES, found, strict=True) if one is not None}


def _array(value: Any, name: str) -> Any:
    """Return a tensor, BSR or layer as something in host memory that can be saved."""
    if isinstance(value, FeedForward):
        return value
    if isinstance(value, BSR):
        if value._t:
            raise ValueError(f"{name}: a transpose is not stored; save the BSR that it is of")
        parts = (value.data, value.indices, value.indptr)
        arrays = tuple(as_array(part.detach().cpu().contiguous()) for part in parts)
        return _bsr.BSR(arrays, shape=value.shape)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor or a prunus.torch.BSR, got {type(value).__name__}")
    return as_array(value.detach().cpu())
