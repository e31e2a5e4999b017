"""Kernels compiled ahead of time, without a GPU: ``python -m prunus.cuda.compiling``.

``cases`` calls the package's own functions on torch's meta tensors, which have shapes and no memory. What
they would launch is noted (``recording``), each distinct kernel is compiled once for each architecture
(``build``), and what came out is read from the machine code and held against what the chip has (``table``).
"""

from prunus.cuda.compiling.recording import record
from prunus.cuda.compiling.table import Row, plan, rows

__all__ = ["Row", "plan", "record", "rows"]
