"""The engine for NumPy's arrays: operands are uploaded, kernels run, results come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunus._dtypes import F32, I32, OPERANDS, Array, DType
from prunus.cuda import products
from prunus.cuda.host.attention import Attention
from prunus.cuda.host.disk import Disk
from prunus.cuda.host.products import Products
from prunus.cuda.host.recurrence import Recurrence
from prunus.cuda.host.rows import Rows
from prunus.cuda.runtime import Place, named

if TYPE_CHECKING:
    import torch

__all__ = ["CudaEngine", "make"]


class CudaEngine(Products, Rows, Attention, Recurrence, Disk):
    """Runs operations on a GPU; ``with pr.device("cuda")``.

    NumPy's arrays are uploaded for each call, and results are downloaded: weights that stay belong on the
    GPU, see ``BSR.to("cuda")``. Under Triton's interpreter (``TRITON_INTERPRET=1``) the same kernels run on
    the CPU, slowly, for tests.

    Parameters
    ----------
    name : str
        The device's name, "cuda" or "cuda:1".
    where : Place
        Where kernels run.
    """

    dtypes = OPERANDS | {I32}
    computes = True
    #: None: where nothing is sparse, NumPy multiplies NumPy's arrays.
    dense: Callable[[Array, Array, Array], None] | None = None

    def __init__(self, name: str, where: Place) -> None:
        self.name, self.where = name, where

    def rounding(self, dtype: DType) -> float:
        """See :class:`prunus.engines.base.Engine`: float32 is taken as torch's setting says."""
        if dtype == F32 and not self.where.interpreted and products.precision() == "tf32":
            return 2.0**-10
        return 0.0

    @property
    def device(self) -> torch.device:
        """Where tensors live that its operations take; the host's memory where kernels are interpreted."""
        return self.where.device

    def __repr__(self) -> str:
        return f"<CudaEngine {self.name!r}: {self.where.name}>"


def make(name: str) -> CudaEngine:
    """Return the engine of "cuda" or "cuda:1".

    Raises
    ------
    PrunusError
        If there is no such device, or torch or Triton is missing.
    """
    return CudaEngine(name, named(name))
