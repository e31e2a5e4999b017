"""Arrays on disk: read and written through NumPy's calls, with a fixed budget of memory."""

from prunus.paged.array import PagedArray, from_file
from prunus.paged.expr import PagedExpr
from prunus.paged.working import empty, from_array, full, open, zeros

__all__ = ["PagedArray", "PagedExpr", "empty", "from_array", "from_file", "full", "open", "zeros"]
