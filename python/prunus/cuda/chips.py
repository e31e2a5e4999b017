"""What GPUs of each architecture can do: limits that kernels keep, and rates that tiles are chosen by."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CHIPS", "REACHED_BYTES", "REACHED_FLOPS", "Chip"]

_KIB: Final = 1024

#: Shares of the data sheet's figures that good kernels reach, measured on an H200: a copy moves 4.3 of its
#: 4.8 TB/s, and cuBLAS multiplies random bfloat16 matrices of 8192 x 8192 at 790 of its 989 TFLOP/s.
REACHED_BYTES: Final = 0.9
REACHED_FLOPS: Final = 0.8


class Chip(NamedTuple):
    """A GPU that stands for its architecture.

    Limits are from the table of technical specifications per compute capability in NVIDIA's CUDA C++
    Programming Guide, rates (dense, without structured sparsity) from the data sheet of the GPU named.

    Attributes
    ----------
    name : str
        Which GPU the rates are of.
    capability : int
        Ten times its compute capability: 80, 90, 100.
    multiprocessors : int
    shared : int
        Bytes of shared memory that a block of threads may use.
    shared_each : int
        Bytes that a multiprocessor has, for all its blocks; each also takes ``shared_own``.
    shared_own : int
        Bytes of shared memory that the system keeps for itself in each block of threads.
    warps_each : int
        Warps that a multiprocessor holds.
    bandwidth : float
        Bytes of memory in a second.
    cache : int
        Bytes of the second-level cache.
    flops : dict
        Operations in a second (two for each multiply-add) by what operands are: "half" (bfloat16 and
        float16), "int8", "tf32", "float32" (without tensor cores), "float64" (with them).
    """

    name: str
    capability: int
    multiprocessors: int
    shared: int
    shared_each: int
    shared_own: int
    warps_each: int
    bandwidth: float
    cache: int
    flops: dict[str, float]


CHIPS: Final[dict[str, Chip]] = {
    "sm_80": Chip(
        "A100 80GB SXM",
        80,
        108,
        163 * _KIB,
        164 * _KIB,
        1 * _KIB,
        64,
        2.039e12,
        40 * _KIB**2,
        {"half": 312e12, "int8": 624e12, "tf32": 156e12, "float32": 19.5e12, "float64": 19.5e12},
    ),
    "sm_90": Chip(
        "H200 SXM",
        90,
        132,
        227 * _KIB,
        228 * _KIB,
        1 * _KIB,
        64,
        4.8e12,
        50 * _KIB**2,
        {"half": 989.5e12, "int8": 1979e12, "tf32": 494.7e12, "float32": 67e12, "float64": 67e12},
    ),
    "sm_100": Chip(
        "B200",
        100,
        148,
        227 * _KIB,
        228 * _KIB,
        1 * _KIB,
        64,
        8e12,
        126 * _KIB**2,
        {"half": 2250e12, "int8": 4500e12, "tf32": 1125e12, "float32": 75e12, "float64": 37e12},
    ),
}
