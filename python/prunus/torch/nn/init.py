"""Initial values of block-sparse weights that keep the variance of what passes through.

The rules are those of ``torch.nn.init`` with one difference: fan-in is the number of inputs that a row's
blocks really cover, and fan-out the number of outputs that a column's blocks reach. A dense rule would make
a layer of density ``d`` shrink its inputs by the square root of ``d``. What hangs over the edges becomes 0.

Sources: Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*
(2010); He et al., *Delving deep into rectifiers* (2015); for sparse layers Evci et al., *Gradient flow in
sparse neural networks and how lottery tickets win* (2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunus._layout import blocks_along
from prunus.torch.arrays import BSR
from prunus.torch.blocks import rows_of

if TYPE_CHECKING:
    from prunus.torch.nn.linear import BlockSparseLinear

__all__ = [
    "fans",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zero_padding_",
]


def kaiming_uniform_(
    w: BSR | BlockSparseLinear,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> BSR:
    """Fill with values from U(-bound, bound), ``bound = gain * sqrt(3 / fan)``, block by block.

    Parameters
    ----------
    w : BSR or BlockSparseLinear
        Weights (out, in), or a layer, whose weights are filled.
    a : float
        Slope of the negative side, for ``"leaky_relu"``.
    mode : {"fan_in", "fan_out"}
        Whether the variance of outputs or that of gradients is kept.
    nonlinearity : str
        What follows, by its name for ``torch.nn.init.calculate_gain``.
    generator : torch.Generator, optional
        Source of randomness, on the device of the weights.

    Returns
    -------
    BSR
        The weights.

    Raises
    ------
    ValueError
        If ``mode`` is neither, or the nonlinearity is unknown.
    TypeError
        If ``w`` has no block-sparse weights.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> W = pt.BSR.from_dense(torch.eye(64), blocksize=16)  # each row has 16 inputs, not 64
    >>> W = pt.nn.init.kaiming_uniform_(W, nonlinearity="linear")
    >>> bool(W.data.abs().max() > (3 / 64) ** 0.5)
    True
    """
    return _fill(w, _kaiming(w, a, mode, nonlinearity), False, generator)


def kaiming_normal_(
    w: BSR | BlockSparseLinear,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> BSR:
    """Fill with values from N(0, gain ** 2 / fan), block by block; see :func:`kaiming_uniform_`."""
    return _fill(w, _kaiming(w, a, mode, nonlinearity), True, generator)


def xavier_uniform_(
    w: BSR | BlockSparseLinear, gain: float = 1.0, generator: torch.Generator | None = None
) -> BSR:
    """Fill with values from U(-bound, bound), ``bound = gain * sqrt(6 / (fan_in + fan_out))``.

    Parameters
    ----------
    w : BSR or BlockSparseLinear
        Weights (out, in), or a layer, whose weights are filled.
    gain : float
        Scales all.
    generator : torch.Generator, optional
        Source of randomness, on the device of the weights.

    Returns
    -------
    BSR
        The weights.

    Raises
    ------
    TypeError
        If ``w`` has no block-sparse weights.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(64, 64, blocksize=8, density=0.25)
    >>> W = pt.nn.init.xavier_uniform_(layer)
    >>> bool(W.data.abs().max() <= (6 / (16 + 16)) ** 0.5)
    True
    """
    return _fill(w, _xavier(w, gain), False, generator)


def xavier_normal_(
    w: BSR | BlockSparseLinear, gain: float = 1.0, generator: torch.Generator | None = None
) -> BSR:
    """Fill with values from N(0, 2 * gain ** 2 / (fan_in + fan_out)); see :func:`xavier_uniform_`."""
    return _fill(w, _xavier(w, gain), True, generator)


def fans(w: BSR | BlockSparseLinear) -> tuple[Tensor, Tensor]:
    """Return for each stored block how many inputs its rows have, and how many outputs its columns reach.

    Returns
    -------
    fan_in, fan_out : Tensor
        Shape (n,), in float64 on the device of the weights. Edges count as far as they go.
    """
    w = _weight(w)
    row, col, height, width = _extents(w)
    members = w.indptr[..., 0].numel()
    rows, cols = (members * length for length in _grid(w))
    inputs = width.new_zeros(rows).index_add(0, row, width)[row]
    outputs = height.new_zeros(cols).index_add(0, col, height)[col]
    return (outputs, inputs) if w._t else (inputs, outputs)


def zero_padding_(w: BSR | BlockSparseLinear) -> BSR:
    """Set what hangs over the edges of the shape to 0, in place; returns the weights."""
    w = _weight(w)
    br, bc = w.data.shape[-2:]
    if w._stored[-2] % br == 0 and w._stored[-1] % bc == 0:
        return w
    _, _, height, width = _extents(w)
    down = torch.arange(br, device=w.device)[:, None] < height[:, None, None]
    across = torch.arange(bc, device=w.device) < width[:, None, None]
    with torch.no_grad():
        w.data.masked_fill_(~(down & across), 0)
    return w


def bounds_of(w: BSR) -> Tensor:
    """Return ``1 / sqrt(fan_in)`` of each row of values, (out,): the range of biases."""
    row, _, _, width = _extents(w)
    per_row = width.new_zeros(_grid(w)[0]).index_add(0, row, width)
    bound = per_row.clamp(min=1).rsqrt().masked_fill(per_row == 0, 0.0)
    return bound.repeat_interleave(w.data.shape[-2])[: w._stored[-2]]


# Steps they share ----------------------------------------------------------------------------------------


def _weight(w: BSR | BlockSparseLinear) -> BSR:
    found = getattr(w, "weight", None) if isinstance(w, torch.nn.Module) else w
    if not isinstance(found, BSR):
        raise TypeError(
            f"expected a prunus.torch.BSR or a BlockSparseLinear, got {type(w).__name__}; dense weights are "
            "filled by torch.nn.init"
        )
    return found


def _grid(w: BSR) -> tuple[int, int]:
    br, bc = w.data.shape[-2:]
    return blocks_along(w._stored[-2], br), blocks_along(w._stored[-1], bc)


def _extents(w: BSR) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each stored block's row and column, and how many rows and columns of it are not padding.

    Members that have patterns of their own count on in rows and columns.
    """
    (down, across), (br, bc) = _grid(w), w.data.shape[-2:]
    row = rows_of(w.indices, w.indptr)
    col = w.indices + (row // max(down, 1)) * across
    height = (w._stored[-2] - row % max(down, 1) * br).clamp(max=br).to(torch.float64)
    width = (w._stored[-1] - w.indices * bc).clamp(max=bc).to(torch.float64)
    return row, col, height, width


def _kaiming(w: BSR | BlockSparseLinear, a: float, mode: str, nonlinearity: str) -> Tensor:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    gain = torch.nn.init.calculate_gain(nonlinearity, a)
    return gain * fans(w)[mode == "fan_out"].clamp(min=1).rsqrt()


def _xavier(w: BSR | BlockSparseLinear, gain: float) -> Tensor:
    fan_in, fan_out = fans(w)
    return gain * ((fan_in + fan_out).clamp(min=1) / 2).rsqrt()


def _fill(w: BSR | BlockSparseLinear, std: Tensor, normal: bool, generator: torch.Generator | None) -> BSR:
    """Fill with values of a standard deviation for each block."""
    found = _weight(w)
    with torch.no_grad():
        if normal:
            found.data.normal_(generator=generator)
        else:
            found.data.uniform_(-(3**0.5), 3**0.5, generator=generator)
        found.data.mul_(std[:, None, None].to(found.dtype))
    return zero_padding_(found)
