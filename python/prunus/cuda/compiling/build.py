"""One kernel compiled for one architecture, and what its machine code needs and uses."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from time import perf_counter
from typing import Any, Final, NamedTuple

from prunus.cuda.versions import Specialised, compiled, tool

__all__ = ["MATRIX", "Built", "build"]

#: Instructions of matrix units, as PTX has them, newest first; what a row of the table calls them.
MATRIX: Final = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma.sync"}
_COPIES: Final = {"cp.async.bulk.tensor": "TMA", "cp.async.c": "cp.async"}


class Built(NamedTuple):
    """What was compiled.

    Attributes
    ----------
    shared : int
        Bytes of shared memory of a program.
    tensor_memory : int
        Columns of tensor memory (sm_100; there are 512).
    warps : int
        As compiled: specialised warps are more than asked for.
    registers : int
        Of a thread.
    stack : int
        Bytes of a thread's stack and local memory: what does not fit into registers is spilled there.
    matrix : tuple of str
        Which instructions of matrix units there are: "mma.sync", "wgmma", "tcgen05", and "DMMA" for
        ``mma.sync`` of float64.
    copies : tuple of str
        How operands get to shared memory: "TMA", "cp.async".
    seconds : float
        How long it took.
    """

    shared: int
    tensor_memory: int
    warps: int
    registers: int
    stack: int
    matrix: tuple[str, ...]
    copies: tuple[str, ...]
    seconds: float


def build(what: Specialised) -> Built:
    """Compile a kernel and read its machine code.

    Raises
    ------
    Exception
        What Triton, LLVM or ptxas say.
    """
    begin = perf_counter()
    made = compiled(what)
    ptx, metadata = made.asm["ptx"], made.metadata
    registers, stack = _usage(made.asm["cubin"])
    return Built(
        int(metadata.shared),
        int(getattr(metadata, "tmem_size", None) or 0),
        int(metadata.num_warps),
        registers,
        stack,
        _matrix(ptx),
        tuple(name for text, name in _COPIES.items() if text in ptx),
        perf_counter() - begin,
    )


def _matrix(ptx: str) -> tuple[str, ...]:
    found = []
    for text, name in MATRIX.items():
        lines = re.findall(rf"\b{re.escape(text)}\S*", ptx)
        double = [line for line in lines if ".f64" in line]
        if len(lines) > len(double):
            found.append(name)
        if double:
            found.append("DMMA")
    return tuple(found)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return registers, and bytes of stack and local memory of a thread."""
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        told = subprocess.run(
            [tool("cuobjdump"), "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    finally:
        os.unlink(path)
    found: dict[str, Any] = {
        name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)
    }
    return found["REG"], found["STACK"] + found["LOCAL"]
