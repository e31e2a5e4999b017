"""``BlockSparseLinear``: ``torch.nn.Linear`` with block-sparse weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from prunus import _layout as lay
from prunus._construct import as_fraction, count_of
from prunus._mask import BlockMask
from prunus.torch import blocks
from prunus.torch.arrays import BSR
from prunus.torch.functional import linear
from prunus.torch.nn import init
from prunus.torch.nn.balanced import balanced
from prunus.torch.nn.probe import Probe

__all__ = ["BlockSparseLinear"]

_PARTS = ("values", "indices", "indptr")


class BlockSparseLinear(torch.nn.Module):
    """``x @ weight.T + bias`` with block-sparse weights: a drop-in for ``torch.nn.Linear``.

    Weights, gradients and optimiser states take memory in proportion to the density. Without a mask the
    pattern is random and balanced: each row of blocks has the same number of blocks or one more, and so has
    each column, so that all outputs see as many inputs and all inputs reach as many outputs. Columns are
    dealt like cards: all of them in a random order, again and again, and each row takes the next ones.

    Parameters
    ----------
    in_features, out_features : int
        Lengths of inputs and outputs; blocks need not divide them.
    bias : bool
        Whether there is a bias.
    blocksize : int or tuple of int, optional
        Rows (outputs) and columns (inputs) of a block; the mask's, or 32.
    density : float, optional
        ``ceil(density * blocks)`` blocks are stored; 0.1 without a mask.
    mask : BlockMask, optional
        Which blocks are stored, (out_features, in_features).
    generator : torch.Generator, optional
        Source of randomness of the pattern, and of the values where it is on their device.
    device, dtype : optional
        As in ``torch.nn.Linear``. On the meta device the pattern is kept on the host and comes back with
        ``to_empty``.

    Attributes
    ----------
    values : Parameter
        The stored blocks, (n, br, bc). What hangs over the edges is 0, and so is its gradient.
    indices, indptr : Tensor
        The pattern, int32 buffers: ascending columns of each row's blocks, and where rows begin.
    bias : Parameter or None
        Shape (out_features,).

    Raises
    ------
    ValueError
        If ``density`` is not in [0, 1], or ``mask`` does not fit, or is passed beside another way to say it.
    TypeError
        If ``mask`` is none, or ``dtype`` is not float32, float64, float16 or bfloat16.

    Notes
    -----
    The state dict has ``values``, ``indices``, ``indptr`` and ``bias``. Loading one with another number of
    blocks changes the layer's: the parameter stays the same object, the states of an optimiser for it come
    with the optimiser's own state dict. What was computed before cannot be differentiated then: torch says
    so. Values begin as those of ``torch.nn.Linear``, with the fan-in that each row really has.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> layer = pt.nn.BlockSparseLinear(256, 128, blocksize=16, density=0.25)
    >>> layer
    BlockSparseLinear(in_features=256, out_features=128, bias=True, blocksize=(16, 16), 32 of 128 blocks)
    >>> layer(torch.ones(4, 256)).sum().backward()
    >>> layer.values.grad.shape
    torch.Size([32, 16, 16])
    """

    __constants__: ClassVar[list[str]] = ["in_features", "out_features", "blocksize"]
    in_features: int
    out_features: int
    blocksize: tuple[int, int]
    values: torch.nn.Parameter
    bias: torch.nn.Parameter | None
    indices: Tensor
    indptr: Tensor
    # The gradient at absent blocks is recorded here, while a learner wants it.
    _probe: Probe | None
    # The pattern in host memory while the buffers are on the meta device, which holds no values.
    _host: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        blocksize: int | tuple[int, int] | None = None,
        density: float | None = None,
        mask: BlockMask | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = lay.as_shape((out_features, in_features))
        if mask is None:
            block = lay.as_blocksize(32 if blocksize is None else blocksize)
            down, across = (lay.blocks_along(n, size) for n, size in zip(shape, block, strict=True))
            count = count_of(as_fraction(0.1 if density is None else density, "density"), down * across)
            indices, indptr = blocks.pattern_of(balanced(down, across, count, generator))
        else:
            block = _check_mask(mask, shape, blocksize, density)
            indices, indptr = blocks.from_mask(mask, "cpu")
        data = torch.empty(len(indices), *block, device=device, dtype=dtype)
        there = indices.to(data.device), indptr.to(data.device)
        added = torch.empty(shape[0], device=device, dtype=dtype) if bias else None
        self._fill(BSR((data, *there), shape), added)
        if data.is_meta:
            self._host = indices, indptr
        self.reset_parameters(
            generator if generator is None or generator.device.type == data.device.type else None
        )

    def _fill(self, w: BSR, bias: Tensor | None) -> None:
        self.out_features, self.in_features = (int(n) for n in w.shape)
        self.blocksize = w.blocksize
        self._probe = self._host = None
        self.values = torch.nn.Parameter(w.data)
        self.register_buffer("indices", w.indices)
        self.register_buffer("indptr", w.indptr)
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias))

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        blocksize: int | tuple[int, int] | None = None,
        density: float | None = None,
        mask: BlockMask | None = None,
    ) -> Self:
        """Return a layer with those blocks of a dense layer's weights that matter, copied.

        Parameters
        ----------
        linear : torch.nn.Linear
            The dense layer, which stays as it is.
        blocksize : int or tuple of int, optional
            Rows and columns of a block; the mask's, or 32.
        density : float, optional
            Keeps ``ceil(density * blocks)`` blocks of the largest Frobenius norm; 0.1 without a mask.
        mask : BlockMask, optional
            Which blocks to keep.

        Raises
        ------
        TypeError
            If ``linear`` is no ``torch.nn.Linear``.
        ValueError
            As for the constructor.

        Examples
        --------
        >>> import torch
        >>> import prunus.torch as pt
        >>> dense = torch.nn.Linear(64, 64)
        >>> layer = pt.nn.BlockSparseLinear.from_linear(dense, blocksize=16, density=1)
        >>> bool(torch.allclose(layer(torch.ones(64)), dense(torch.ones(64)), atol=1e-6))
        True
        """
        if not isinstance(linear, torch.nn.Linear):
            raise TypeError(f"expected a torch.nn.Linear, got {type(linear).__name__}")
        dense = linear.weight.detach()
        if dense.is_meta:
            raise ValueError("the layer is on the meta device: it has no values to choose blocks by")
        if mask is None:
            block = lay.as_blocksize(32 if blocksize is None else blocksize)
            density = 0.1 if density is None else density
        else:
            block = _check_mask(mask, tuple(dense.shape), blocksize, density)
        w = BSR.from_dense(dense, block, density, mask)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self = cls.__new__(cls)
        torch.nn.Module.__init__(self)
        self._fill(w, bias)
        self.values.requires_grad_(linear.weight.requires_grad)
        if self.bias is not None:
            self.bias.requires_grad_(linear.bias.requires_grad)
        return self.train(linear.training)

    def to_linear(self) -> torch.nn.Linear:
        """Return a dense layer of the same function, with copies of weights and bias; absent blocks are 0."""
        device, dtype = self.values.device, self.values.dtype
        made = torch.nn.utils.skip_init(
            torch.nn.Linear, self.in_features, self.out_features, self.bias is not None,
            device=device, dtype=dtype,
        )  # fmt: skip
        with torch.no_grad():
            made.weight.copy_(self.weight.toarray())
            if self.bias is not None:
                made.bias.copy_(self.bias)
        made.weight.requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            made.bias.requires_grad_(self.bias.requires_grad)
        made.train(self.training)
        return made

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw values and bias anew, within ``1 / sqrt(fan_in)`` as ``torch.nn.Linear`` does."""
        w = init.kaiming_uniform_(self, a=5**0.5, generator=generator)
        if self.bias is not None:
            with torch.no_grad():
                bound = init.bounds_of(w).to(self.bias.dtype)
                self.bias.uniform_(-1, 1, generator=generator).mul_(bound)

    # What it holds -----------------------------------------------------------------------------------

    @property
    def weight(self) -> BSR:
        """The weights, (out_features, in_features), of the layer's own tensors."""
        return BSR._wrap(self.values, self.indices, self.indptr, (self.out_features, self.in_features))

    @property
    def grid(self) -> tuple[int, int]:
        """How many blocks fit down and across."""
        br, bc = self.blocksize
        return lay.blocks_along(self.out_features, br), lay.blocks_along(self.in_features, bc)

    @property
    def nnzb(self) -> int:
        """How many blocks are stored."""
        return int(self.indices.shape[0])

    @property
    def density(self) -> float:
        """The share of blocks that are stored."""
        return self.weight.density

    @property
    def mask(self) -> BlockMask:
        """Which blocks are stored, on the host."""
        indices, indptr = self._host or (self.indices, self.indptr)
        pattern = (indices.cpu().numpy(), indptr.cpu().numpy())
        return BlockMask(pattern, self.blocksize, shape=(self.out_features, self.in_features))

    def extra_repr(self) -> str:
        """Return sizes and how many blocks there are."""
        down, across = self.grid
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, blocksize={self.blocksize}, {self.nnzb} of {down * across} blocks"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias`` for x (*lead, in_features)."""
        y = linear(x, self.weight, self.bias)
        if self._probe is None or not torch.is_grad_enabled():
            return y
        return self._probe.watch(x, y)

    # Other blocks ------------------------------------------------------------------------------------

    def _set_blocks(self, values: Tensor, indices: Tensor, indptr: Tensor) -> None:
        """Have other values at another pattern, in the same tensor objects.

        What a graph saved of them is marked as changed, so that a backward of an earlier forward raises
        torch's error in place of a gradient that fits nothing.
        """
        if len(indices) != self.nnzb:
            self.values.grad = None
        for part, new in zip(_PARTS, (values, indices, indptr), strict=True):
            replace(getattr(self, part), new)
        self._probe = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert parameters, and move the pattern, which no conversion of dtype or memory changes."""
        pattern = self._host or (self.indices, self.indptr)
        before = self.values.device, self.values.dtype
        super()._apply(fn, recurse)
        device = self.indices.device
        if self.indices.is_meta:
            self._host = (pattern[0].detach().cpu(), pattern[1].detach().cpu())
            kept = tuple(part.to("meta") for part in pattern)
        else:
            self._host = None
            # `to_empty` gives memory without values, `type` another dtype. What stays is not written: a graph
            # that saved it would take it for changed.
            kept = tuple(
                now if now is part else now.copy_(part) if now.dtype == part.dtype else part.to(device)
                for now, part in zip((self.indices, self.indptr), pattern, strict=True)
            )
        self.indices, self.indptr = kept
        if (self.values.device, self.values.dtype) != before:
            self._probe = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: not the place of gradients, which is a learner's."""
        return {**self.__dict__, "_probe": None}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save parameters and buffers, and beside them the shape, which they do not tell."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["shape"] = (self.out_features, self.in_features)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load values at any pattern of the layer's block size: room is made for as many blocks as come."""
        parts = [state_dict.get(prefix + name) for name in _PARTS]
        if any(part is not None for part in parts):
            why = self._why_not(parts, local_metadata.get("shape"))
            if why:
                error_msgs.append(
                    f"{prefix.rstrip('.') or type(self).__name__}: {why}; nothing of it is loaded"
                )
                return
            values, indices, indptr = (part for part in parts if part is not None)
            if len(indices) != self.nnzb:
                self._set_blocks(
                    self.values.new_zeros(values.shape),
                    self.indices.new_zeros(indices.shape),
                    self.indptr.new_zeros(indptr.shape),
                )
            if not indices.is_meta:
                self._host = (indices.cpu(), indptr.cpu()) if self.indices.is_meta else None
            if local_metadata.get("assign_to_params_buffers", False):
                self._host = None
            self._probe = None
        elif strict and prefix + "weight" in state_dict:
            error_msgs.append(
                f"{prefix + 'weight'} is that of a dense layer: load it into a torch.nn.Linear, and make "
                "this layer of it with BlockSparseLinear.from_linear"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _why_not(self, parts: list[Tensor | None], shape: tuple[int, int] | None) -> str | None:
        """Say why a state's values and pattern are not a layer's; ``shape`` is what it was of, if known."""
        missing = [name for name, part in zip(_PARTS, parts, strict=True) if part is None]
        if missing:
            return f"the state has values or a pattern, but no {' and no '.join(missing)}"
        values, indices, indptr = (part for part in parts if part is not None)
        if tuple(values.shape[1:]) != self.blocksize:
            return f"expected values of shape (blocks, *{self.blocksize}), got {tuple(values.shape)}"
        own, across = (self.out_features, self.in_features), self.grid[1]
        if shape is not None and tuple(shape) != own:
            return f"expected a layer of (out_features, in_features) {own}, the state is of {tuple(shape)}"
        try:
            blocks.check_pattern(values, indices, indptr, own)
            if not indices.is_meta:
                blocks.check_values(indices, indptr, across)
        except (TypeError, ValueError) as error:
            return str(error)
        if not indices.is_meta:
            keys = blocks.keys_of(indices, indptr, across)
            if bool((keys[1:] <= keys[:-1]).any()):
                return "expected columns that ascend within each row of blocks, each once"
        return None


def replace(tensor: Tensor, new: Tensor) -> None:
    """Give a tensor other contents of any length, and say so to graphs that have saved it."""
    with torch.no_grad():
        if tensor.shape == new.shape:
            tensor.copy_(new)
            return
        # With another dtype in between autograd forgets the node that sums this tensor's gradient. It knows
        # the old shape, and lives as long as any graph of an earlier forward does.
        other = torch.float64 if new.dtype == torch.float32 else torch.float32
        tensor.data = new.new_empty(0, dtype=other)
        tensor.data = new
    torch.autograd.graph.increment_version(tensor)


def _check_mask(
    mask: BlockMask, shape: tuple[int, ...], blocksize: int | tuple[int, int] | None, density: float | None
) -> tuple[int, int]:
    if not isinstance(mask, BlockMask):
        raise TypeError(f"mask must be a BlockMask, got {type(mask).__name__}")
    if density is not None:
        raise ValueError("density and mask are two ways to say which blocks: pass one")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"the mask must have the shape (out_features, in_features), {shape}, got {mask.shape}"
        )
    if blocksize is not None and lay.as_blocksize(blocksize) != mask.blocksize:
        raise ValueError(f"the mask has blocks of {mask.blocksize}, blocksize says {blocksize}")
    return mask.blocksize
