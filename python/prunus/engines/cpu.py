"""The CPU engine: hands arrays to the compiled kernels in ``prunus._core``."""

from __future__ import annotations

from typing import Final

import numpy as np

from prunus import _core
from prunus._dtypes import BFLOAT16, F16, F32, F64, I8, I32, Array, DType, input_dtype
from prunus._layout import Index
from prunus._threads import THREADS
from prunus.engines.base import Blocks

__all__ = ["CpuEngine"]

# The results the kernels store themselves, by operand dtype; anything else is cast once afterwards.
_STORES: Final[dict[DType, tuple[DType, ...]]] = {
    F32: (F32,),
    F64: (F64,),
    F16: (F16, F32),
    BFLOAT16: (BFLOAT16, F32),
    I8: (I32,),
}


def _stored(inputs: DType, wanted: DType) -> DType:
    """Return the dtype the kernels store for ``inputs`` on the way to ``wanted``."""
    known = _STORES[inputs]
    return wanted if wanted in known else known[-1]


class CpuEngine:
    """Products on the host's cores, with the SIMD level chosen when the package was loaded."""

    name = "cpu"

    def dsd(self, w: Blocks, x: Array, out: Array, bias: Array | None, activation: str | None) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        # The kernels take every pair of operand dtypes and round once, so nothing is converted here.
        if w.packed is None:
            _core.dsd(
                w.data, w.indices, w.indptr, w.shape, w.transposed, x, out, bias, activation, THREADS.get()
            )
        else:
            _core.dsd_packed(w.packed, w.transposed, x, out, bias, activation, THREADS.get())

    def ssd(self, a: Blocks, b: Blocks, dtype: DType) -> tuple[Array, Index, Index]:
        """See :class:`prunus.engines.base.Engine`."""
        inputs = input_dtype(a.data.dtype, b.data.dtype, dtype)
        stored = _stored(inputs, dtype)
        data, indices, indptr = _core.ssd(
            a.data.astype(inputs, copy=False),
            a.indices,
            a.indptr,
            b.data.astype(inputs, copy=False),
            b.indices,
            b.indptr,
            -(-b.shape[1] // b.data.shape[2]),
            stored,
            THREADS.get(),
        )
        return data.astype(dtype, copy=False), indices, indptr

    def sdd(self, a: Array, b: Array, indices: Index, indptr: Index, out: Array) -> None:
        """See :class:`prunus.engines.base.Engine`."""
        dtype = input_dtype(a.dtype, b.dtype, out.dtype)
        stored = _stored(dtype, out.dtype)
        target = out if stored == out.dtype else np.zeros(out.shape, stored)
        _core.sdd(
            a.astype(dtype, copy=False), b.astype(dtype, copy=False), indices, indptr, target, THREADS.get()
        )
        if target is not out:
            out[...] = target
