"""Giving a layer other blocks while it trains: values, gradients and optimiser states follow.

Everything here is computed where the layer lives; nothing waits for a GPU but the checks and counts of
:func:`set_pattern`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from prunus._mask import BlockMask
from prunus.torch import blocks
from prunus.torch.nn import init
from prunus.torch.nn.linear import BlockSparseLinear

__all__ = ["Change", "keys_of", "move", "set_pattern"]

_GROWN: Final = ("zeros", "kaiming_uniform")


class Change(NamedTuple):
    """What became of a layer's blocks.

    Attributes
    ----------
    name : str
        The layer.
    step : int
        When, in steps of what changed it.
    before, after : int
        Blocks that it had, and has.
    dropped, grown : int
        Blocks that went, and that came.
    density : float
        The share of blocks that it has now.
    """

    name: str
    step: int
    before: int
    after: int
    dropped: int
    grown: int
    density: float


def set_pattern(
    layer: BlockSparseLinear,
    pattern: BlockMask | Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    grown: str = "zeros",
) -> Change:
    """Give a layer another pattern; blocks that stay keep their values, gradients and optimiser states.

    The parameter stays the same object, so that optimisers and hooks go on with it. With as many blocks as
    before everything is written in place; with another number the tensors change their size. Either way a
    backward of an earlier forward raises torch's error about tensors that were modified. Grown blocks have no
    gradient (0) and states of 0.

    Parameters
    ----------
    layer : BlockSparseLinear
        The layer.
    pattern : BlockMask or Tensor
        A mask of the layer's shape and block size; or booleans, one for each block of the grid; or places
        of blocks, row of blocks times columns of blocks plus column, (n,) integers in any order.
    optimizer : torch.optim.Optimizer, optional
        Whose states follow: those of the parameter's shape, and those with a size of 1 in place of a block's
        rows or columns; single numbers stay.
    grown : {"zeros", "kaiming_uniform"}
        Values of new blocks: 0, or drawn as a new layer's.

    Returns
    -------
    Change
        What went and came.

    Raises
    ------
    ValueError
        If the pattern does not fit the layer, or has a block twice or outside.
    TypeError
        If ``layer`` or ``pattern`` is none, or an optimiser has states that cannot follow, as L-BFGS has.

    Notes
    -----
    ``DistributedDataParallel`` cuts its buckets by sizes: where the number of blocks changes, wrap the model
    again. Compiled layers are compiled again for another number of blocks.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(4, 4, blocksize=2, mask=pr.BlockMask.block_diagonal((4, 4), 2))
    >>> kept = layer.values[0].clone()
    >>> change = pt.learning.set_pattern(layer, torch.tensor([[True, True], [False, False]]))
    >>> change.dropped, change.grown, layer.indices.tolist(), bool((layer.values[0] == kept).all())
    (1, 1, [0, 1], True)
    """
    if not isinstance(layer, BlockSparseLinear):
        raise TypeError(f"expected a BlockSparseLinear, got {type(layer).__name__}")
    if grown not in _GROWN:
        raise ValueError(f"grown must be one of {', '.join(map(repr, _GROWN))}, got {grown!r}")
    new, old = _as_keys(layer, pattern), keys_of(layer)
    before = layer.nnzb
    check_states(layer, optimizer)
    move(layer, new, optimizer, grown)
    kept = int(torch.isin(new, old).sum())
    return Change("", 0, before, len(new), before - kept, len(new) - kept, layer.density)


def keys_of(layer: BlockSparseLinear) -> Tensor:
    """Return the ascending places of a layer's blocks, in int64."""
    return blocks.keys_of(layer.indices, layer.indptr, layer.grid[1])


def absent_keys(layer: BlockSparseLinear) -> Tensor:
    """Return the ascending places of blocks that a layer has not; how many, the host knows."""
    down, across = layer.grid
    free = torch.ones(down * across, dtype=torch.bool, device=layer.indices.device)
    free[keys_of(layer)] = False
    # What is free comes first, in order: no size has to come back from a GPU, as `nonzero` would have it.
    return torch.sort((~free).to(torch.uint8), stable=True).indices[: down * across - layer.nnzb]


def pattern_of(keys: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return indices and indptr, in int32, of ascending places."""
    down, across = grid
    starts = torch.arange(down + 1, device=keys.device, dtype=keys.dtype) * across
    indptr = torch.searchsorted(keys, starts)
    return (keys % max(across, 1)).to(torch.int32), indptr.to(torch.int32)


def move(
    layer: BlockSparseLinear,
    keys: Tensor,
    optimizer: torch.optim.Optimizer | None,
    grown: str = "zeros",
    together: bool = False,
) -> None:
    """Give a layer the blocks at ascending places, and have everything follow that belongs to them.

    ``together``: all processes do, and draw the same values.
    """
    old, parameter = keys_of(layer), layer.values
    states = [] if optimizer is None else _states(optimizer, parameter)
    source = torch.searchsorted(old, keys).clamp(max=max(len(old) - 1, 0))
    found = old[source] == keys if len(old) else torch.zeros_like(keys, dtype=torch.bool)

    def follow(tensor: Tensor) -> Tensor:
        if not len(old):
            return tensor.new_zeros((len(keys), *tensor.shape[1:]))
        return torch.where(found[:, None, None], tensor[source], 0)

    with torch.no_grad():
        values, grad = follow(parameter), parameter.grad
        new_grad = None if grad is None else follow(grad)
        new_states = [follow(tensor) for _, _, tensor in states]
        same = len(keys) == len(old)
        indices, indptr = pattern_of(keys, layer.grid)
        layer._set_blocks(values, indices.to(layer.indices.dtype), indptr.to(layer.indptr.dtype))
        if grown == "kaiming_uniform":
            drawn = init.kaiming_uniform_(layer.weight.detach().clone(), a=5**0.5).data
            drawn = agreed(drawn) if together else drawn
            parameter.copy_(torch.where(found[:, None, None], parameter, drawn))
        if grad is not None and new_grad is not None:
            if same:  # DistributedDataParallel's buckets may share its memory
                grad.copy_(new_grad)
            else:
                parameter.grad = new_grad
        for (state, name, tensor), new in zip(states, new_states, strict=True):
            if same:
                tensor.copy_(new)
            else:
                state[name] = new


def agreed(drawn: Tensor) -> Tensor:
    """Return what process 0 drew, in all of them: random numbers differ, replicas must not."""
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        drawn = drawn.contiguous()
        group.broadcast(drawn, 0)
    return drawn


def check_states(layer: BlockSparseLinear, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise unless an optimiser's states of a layer's values can follow blocks.

    Raises
    ------
    TypeError
        Naming what cannot.
    """
    if optimizer is not None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):  # its states, which come later, are of all parameters
            raise TypeError("LBFGS keeps states of all parameters in one: they cannot follow blocks")
        _states(optimizer, layer.values)


def _states(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return the states of a parameter that have a slice for each block."""
    state = optimizer.state.get(parameter, {})
    found = []
    for name, value in state.items():
        if isinstance(value, Tensor):
            if value.numel() == 1 and value.ndim < 3:
                continue
            fits = value.ndim == 3 and len(value) == len(parameter)
            if fits and all(
                n in (1, size) for n, size in zip(value.shape[1:], parameter.shape[1:], strict=True)
            ):
                found.append((state, name, value))
                continue
        elif value is None or isinstance(value, (bool, int, float, str)):
            continue
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{type(optimizer).__name__} keeps {name!r} ({what}) for values of {tuple(parameter.shape)}: it "
            "cannot follow blocks; expected tensors of the parameter's shape, or single numbers"
        )
    return found


def _as_keys(layer: BlockSparseLinear, pattern: BlockMask | Tensor) -> Tensor:
    """Return the ascending places of a pattern's blocks, checked."""
    device, (down, across) = layer.indices.device, layer.grid
    if isinstance(pattern, BlockMask):
        shape = (layer.out_features, layer.in_features)
        if pattern.shape != shape or pattern.blocksize != layer.blocksize:
            raise ValueError(
                f"expected a mask of shape {shape} in blocks of {layer.blocksize}, got {pattern.shape} in "
                f"blocks of {pattern.blocksize}"
            )
        return torch.tensor(pattern._keys(), dtype=torch.int64, device=device)
    if not isinstance(pattern, Tensor):
        raise TypeError(f"expected a BlockMask or a tensor, got {type(pattern).__name__}")
    if pattern.dtype == torch.bool:
        if tuple(pattern.shape) != (down, across):
            raise ValueError(f"expected a grid of {(down, across)} blocks, got shape {tuple(pattern.shape)}")
        return pattern.to(device).flatten().nonzero()[:, 0]
    if pattern.is_floating_point() or pattern.is_complex():
        raise TypeError(f"expected booleans or integers, got {pattern.dtype}")
    if pattern.ndim != 1:
        raise ValueError(f"expected places of blocks of shape (n,), got {tuple(pattern.shape)}")
    keys = torch.sort(pattern.to(device, torch.int64)).values
    if len(keys) and not (int(keys[0]) >= 0 and int(keys[-1]) < down * across):
        raise ValueError(f"places must lie in [0, {down * across}), got {int(keys[0])} to {int(keys[-1])}")
    if bool((keys[1:] == keys[:-1]).any()):
        raise ValueError("a place comes more than once")
    return keys
