"""Who takes part in a comparison, and how each is called."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import prunus as pr
from prunus.bench.machine import optional

__all__ = [
    "PACKED",
    "PRUNUS",
    "Contestant",
    "Peers",
    "Weights",
    "WrongResultError",
    "as_dtype",
    "check",
    "divides",
    "wide",
]

PRUNUS = "prunus"
PACKED = "prunus packed"

# Relative to the largest value of the reference: float32 sums of a few thousand terms, and results of
# bfloat16 rounded to 8 bits of mantissa.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-12, "bfloat16": 1e-2, "float16": 2e-3}


class WrongResultError(RuntimeError):
    """A contestant's result differs from the reference, so its time means nothing."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One library's way to do a product.

    Attributes
    ----------
    name : str
        Shown in tables.
    call : callable
        Does the product as its user would write it and returns the result.
    read : callable
        Turns the result into a float32 (or float64) ndarray, for the check.
    flops : float
        Useful operations of one call.
    dense : bool
        Whether it multiplies zeros as well.
    slow : bool
        Whether it gets fewer rounds.
    """

    name: str
    call: Callable[[], Any]
    read: Callable[[Any], NDArray[Any]]
    flops: float
    dense: bool = False
    slow: bool = False


def as_dtype(name: str) -> np.dtype[Any]:
    """Find a dtype by name, bfloat16 included."""
    kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    return kind


def wide(array: NDArray[Any]) -> NDArray[Any]:
    """Give the values in a type that NumPy computes with itself."""
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def divides(block: int, shape: tuple[int, ...]) -> bool:
    """Tell whether blocks divide a shape, as SciPy and torch want it."""
    return not any(length % block for length in shape)


def check(contestant: Contestant, reference: NDArray[Any], dtype: str) -> float:
    """Run a contestant once and compare its result with the reference.

    Parameters
    ----------
    contestant : Contestant
        Who runs.
    reference : ndarray
        The right result.
    dtype : str
        Type of the operands, which decides how close the result has to be.

    Returns
    -------
    float
        Largest difference, relative to the largest value of `reference`.

    Raises
    ------
    WrongResultError
        If the difference is too large or the shape is another.
    """
    result = contestant.read(contestant.call())
    if result.shape != reference.shape:
        raise WrongResultError(f"{contestant.name}: shape {result.shape} instead of {reference.shape}")
    if not reference.size:
        return 0.0
    scale = float(np.abs(reference).max())
    error = float(np.abs(result - reference).max()) / (scale or 1.0)
    # Not `error > tolerance`: a NaN must fail as well.
    if not error <= _TOLERANCE[dtype]:
        raise WrongResultError(f"{contestant.name}: off by {error:.1e} of the largest value ({dtype})")
    return error


@dataclass(frozen=True, slots=True)
class Weights:
    """One pruned matrix in every contestant's form; the values are shared wherever a library allows it.

    Attributes
    ----------
    density : float
        Share of blocks present.
    bsr, packed : prunus.BSR
        As constructed, and frozen in the engine's layout.
    scipy, torch : object or None
        The same matrix in a peer's form, where that peer is installed and knows the dtype, and blocks divide
        the shape.
    """

    density: float
    bsr: Any
    packed: Any
    scipy: Any = None
    torch: Any = None

    def flops(self, columns: int) -> float:
        """Operations on the stored blocks in a product with `columns` columns."""
        return 2.0 * float(self.bsr.data.size) * columns

    def masked(self) -> NDArray[Any]:
        """Make the matrix dense again, in a type that NumPy computes with."""
        return wide(self.bsr.toarray())

    def present(self) -> NDArray[np.bool_]:
        """Tell for every value of the matrix whether its block is stored."""
        rows, columns = self.bsr.blocksize
        grid = np.zeros((self.bsr.shape[0] // rows, self.bsr.shape[1] // columns), np.bool_)
        grid[np.repeat(np.arange(grid.shape[0]), np.diff(self.bsr.indptr)), self.bsr.indices] = True
        return np.kron(grid, np.ones((rows, columns), np.bool_))


@dataclass
class Peers:
    """The libraries found in this process.

    Parameters
    ----------
    skip_slow : bool
        Leave SciPy out.
    """

    skip_slow: bool = False
    torch: Any = field(init=False)
    scipy: Any = field(init=False)

    def __post_init__(self) -> None:
        self.torch = optional("torch")
        self.scipy = None
        if not self.skip_slow and optional("scipy") is not None:
            self.scipy = importlib.import_module("scipy.sparse")
        if self.torch is not None:
            self.torch.set_grad_enabled(False)

    def versions(self) -> dict[str, str]:
        """Name each library that takes part, with its version."""
        found = {"prunus": pr.__version__, "numpy": np.__version__}
        for name in ("scipy", "torch"):
            if getattr(self, name) is not None:
                found[name] = importlib.import_module(name).__version__
        return found

    def tensor(self, array: NDArray[Any]) -> Any:
        """View an ndarray as a torch tensor, without a copy."""
        if array.dtype.name == "bfloat16":
            # torch doesn't know ml_dtypes' type; the same 16 bits pass as integers.
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def read_tensor(self, tensor: Any) -> NDArray[Any]:
        """Copy a tensor into a float32 (or float64) ndarray."""
        if tensor.dtype != self.torch.float64:
            tensor = tensor.float()
        return np.asarray(tensor.numpy())

    def weights(self, dense: NDArray[Any], block: int, density: float) -> Weights:
        """Prune a matrix to `density` and give it to everyone whose blocks fit its shape."""
        bsr = pr.BSR.from_dense(dense, blocksize=(block, block), density=density)
        half = dense.dtype.name == "bfloat16"
        fits = divides(block, dense.shape)
        scipy = None
        if self.scipy is not None and fits and not half:
            scipy = self.scipy.bsr_array((bsr.data, bsr.indices, bsr.indptr), shape=bsr.shape)
        torch = self._torch_bsr(bsr) if self.torch is not None and fits else None
        return Weights(bsr.density, bsr, bsr.pack(), scipy, torch)

    def _torch_bsr(self, bsr: Any) -> Any:
        """Give torch a BSR matrix, or None where it can't multiply one of this type."""
        torch = self.torch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse (BSR|CSR|invariant)", category=UserWarning)
            # int32 is what MKL takes: with int64 torch would convert the indices in every call.
            weight = torch.sparse_bsr_tensor(
                torch.from_numpy(np.asarray(bsr.indptr, np.int32)),
                torch.from_numpy(np.asarray(bsr.indices, np.int32)),
                self.tensor(bsr.data),
                size=bsr.shape,
            )
            try:
                weight @ torch.zeros(bsr.shape[1], 2, dtype=weight.dtype)
            except (RuntimeError, NotImplementedError):
                return None
        return weight

    def dense_product(self, a: NDArray[Any], b: NDArray[Any]) -> list[Contestant]:
        """Give everyone who multiplies two dense matrices."""
        flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
        found = []
        if a.dtype.name != "bfloat16":
            # NumPy multiplies bfloat16 element by element, hundreds of times slower: no rival.
            found.append(Contestant("numpy", lambda: a @ b, wide, flops, dense=True))
        if self.torch is not None:
            ta, tb = self._as_laid_out(a), self._as_laid_out(b)
            found.append(Contestant("torch", lambda: ta @ tb, self.read_tensor, flops, dense=True))
        return found

    def _as_laid_out(self, array: NDArray[Any]) -> Any:
        """View an array as a tensor with the same strides: a transposed view stays one."""
        return self.tensor(array) if array.flags.c_contiguous else self.tensor(array.T).T

    def dsd(self, weights: Weights, x: NDArray[Any], layout: str) -> list[Contestant]:
        """Give everyone who multiplies a block-sparse matrix with a dense one.

        Parameters
        ----------
        weights : Weights
            W, of shape (m, k).
        x : ndarray
            Of shape (k, n) in layout ``"wx"``, (n, k) in layout ``"xwt"``.
        layout : str
            ``"wx"``: ``W @ x``; ``"xwt"``: ``x @ W.T``.
        """
        bsr, packed, scipy, weight = weights.bsr, weights.packed, weights.scipy, weights.torch
        columns = x.shape[1] if layout == "wx" else x.shape[0]
        flops = weights.flops(columns)
        tokens = layout == "xwt"

        def add(
            name: str, call: Callable[[], Any], read: Callable[[Any], NDArray[Any]], slow: bool = False
        ) -> None:
            found.append(Contestant(name, call, read, flops, slow=slow))

        found: list[Contestant] = []
        if tokens:
            add(PRUNUS, lambda: x @ bsr.T, wide)
            add(PACKED, lambda: x @ packed.T, wide)
        else:
            add(PRUNUS, lambda: bsr @ x, wide)
            add(PACKED, lambda: packed @ x, wide)
        if weight is not None:
            tx = self.tensor(x)
            # For tokens: linear(x, W) takes a BSR weight as well, but was up to 20 times slower than this.
            call = (lambda: (weight @ tx.T).T) if tokens else (lambda: weight @ tx)
            add("torch bsr", call, self.read_tensor)
        if scipy is not None:
            # x @ W.T in SciPy transposes every block of W in each call; this is its faster way.
            add("scipy", (lambda: (scipy @ x.T).T) if tokens else (lambda: scipy @ x), wide, slow=True)
        return found

    def sdd(self, weights: Weights, a: NDArray[Any], b: NDArray[Any]) -> list[Contestant]:
        """Give everyone who computes chosen blocks of a product, the blocks of `weights`: so far prunus."""
        mask = weights.bsr.mask
        return [
            Contestant(
                PRUNUS, lambda: pr.sddmm(a, b, mask), lambda r: wide(r.toarray()), weights.flops(a.shape[1])
            )
        ]

    def ssd(self, a: Weights, b: Weights) -> list[Contestant]:
        """Give everyone who multiplies two block-sparse matrices."""
        block = a.bsr.blocksize[0]
        per_column = np.bincount(a.bsr.indices, minlength=b.bsr.indptr.size - 1)
        pairs = float(per_column @ np.diff(b.bsr.indptr))
        flops = 2.0 * pairs * block**3
        left, right = a.bsr, b.bsr
        found = [Contestant(PRUNUS, lambda: left @ right, lambda r: wide(r.toarray()), flops)]
        if a.scipy is not None:
            found.append(
                Contestant("scipy", lambda: a.scipy @ b.scipy, lambda r: wide(r.toarray()), flops, slow=True)
            )
        return found
