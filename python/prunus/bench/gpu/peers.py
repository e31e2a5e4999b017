"""Contestants of other libraries, found when they are asked for: some are private, or come and go."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from prunus.bench.gpu.bench import MissingError
from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries

__all__ = [
    "CUSPARSE",
    "FLEX",
    "GROUPED",
    "LOOP",
    "SDPA",
    "SPARSE_MM",
    "TORCH_BSR",
    "bsr_dense",
    "flex",
    "grouped",
    "needs_gpu",
    "sampled",
    "sparse_bsr",
    "sparse_csr",
]

#: What they are called.
TORCH_BSR: Final = "torch bsr"
SPARSE_MM: Final = "torch.sparse.mm bsr"
CUSPARSE: Final = "cusparse csr"
GROUPED: Final = "torch grouped"
LOOP: Final = "torch loop"
FLEX: Final = "FlexAttention"
SDPA: Final = "torch sdpa"


def needs_gpu(where: Place) -> None:
    """Raise :class:`MissingError` where there is no GPU."""
    if where.interpreted:
        raise MissingError("needs a GPU")


def _found(module: str, *names: str) -> Any:
    """Return the first of some names that a module has."""
    try:
        home = import_module(module)
    except ImportError as error:
        raise MissingError(f"{module} cannot be imported: {error}") from error
    for name in names:
        found = getattr(home, name, None)
        if found is not None:
            return found
    version = libraries().versions[0]
    raise MissingError(f"torch {version} has no {module}.{' or '.join(names)}")


def bsr_dense(where: Place) -> Callable[[Any, Any], Any]:
    """Return torch's Triton kernel for ``W @ x`` with W of layout ``sparse_bsr``: it is private."""
    needs_gpu(where)
    product = _found("torch.sparse._triton_ops", "bsr_dense_addmm")

    def run(w: Any, x: Any) -> Any:
        # With beta = 0 the first operand is not looked at.
        return product(x.new_empty((w.shape[0], x.shape[1])), w, x, beta=0, alpha=1)

    return run


def sampled(where: Place) -> Callable[[Any, Any, Any], Any]:
    """Return torch's Triton kernel for ``a @ b`` at the blocks of a ``sparse_bsr`` tensor: it is private."""
    needs_gpu(where)
    product = _found("torch.sparse._triton_ops", "sampled_addmm")
    return lambda at, a, b: product(at, a, b, beta=0.0, alpha=1.0)


def sparse_bsr(indptr: Any, indices: Any, blocks: Any, shape: tuple[int, ...]) -> Any:
    """Return a torch tensor of layout ``sparse_bsr`` that shares its parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is in beta
        return libraries().torch.sparse_bsr_tensor(indptr, indices, blocks, size=shape)


def sparse_csr(values: Any) -> Any:
    """Return a dense matrix as a torch tensor of layout ``sparse_csr``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.to_sparse_csr()


def grouped(where: Place) -> Callable[[Any, Any, Any], Any]:
    """Return torch's grouped product of (rows, k) and (experts, k, n), whose groups end at ``offsets``."""
    needs_gpu(where)
    try:
        product = _found("torch.nn.functional", "grouped_mm")
    except MissingError:
        product = _found("torch", "_grouped_mm")
    return lambda a, b, offsets: product(a, b, offs=offsets)


def flex(where: Place) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return FlexAttention, compiled, and what makes its block masks."""
    needs_gpu(where)
    module = "torch.nn.attention.flex_attention"
    attention, mask = _found(module, "flex_attention"), _found(module, "create_block_mask")
    torch = libraries().torch
    # Each pattern is compiled anew, and after a few of them torch would stop doing so.
    torch.compiler.reset()
    return torch.compile(attention, dynamic=False), mask
