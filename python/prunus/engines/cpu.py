"""The CPU engine: hands arrays to the compiled kernels in ``prunus._core``."""

from __future__ import annotations

from typing import Final

import numpy as np

from prunus import _core
from prunus._dtypes import BFLOAT16, F16, F32, F64, I8, I32, Array, DType, input_dtype
from prunus._layout import Index
from prunus._threads import THREADS
from prunus.engines.base import Blocks
from prunus.engines.epilogue import finish

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
        dtype = input_dtype(w.data.dtype, x.dtype, out.dtype)
        stored = _stored(dtype, out.dtype)
        late = stored == I32 and (bias is not None or activation is not None)
        target = out if stored == out.dtype and not late else np.empty(out.shape, stored)
        if x.dtype != dtype:
            x = x.astype(dtype)  # mixed operands meet in one dtype, as in NumPy's own matmul
        if bias is not None and not late:
            bias = np.ascontiguousarray(bias, dtype=F64 if dtype == F64 else F32)
        early = (None, None) if late else (bias, activation)
        if w.packed is not None and w.data.dtype == dtype:
            _core.dsd_packed(w.packed, w.transposed, x, target, *early, THREADS.get())
        else:
            data = w.data.astype(dtype, copy=False)
            _core.dsd(data, w.indices, w.indptr, w.shape, w.transposed, x, target, *early, THREADS.get())
        if target is not out:
            out[...] = finish(target, bias, activation) if late else target

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
