"""Arrays in files: read and written through NumPy's calls, with a fixed budget of memory.

``pr.open`` and ``pr.save`` are the way in and out for files that other programs share; this package has the
rest.
"""

from prunus.paged.array import PagedArray, from_file
from prunus.paged.checksums import ChecksumError, Mismatch
from prunus.paged.expr import PagedExpr
from prunus.paged.files import File
from prunus.paged.layers import PagedFFN
from prunus.paged.pagers import Pager, default_pager
from prunus.paged.plans import Plan, follow, record
from prunus.paged.sizes import parse_bytes
from prunus.paged.sparse import PagedBSR
from prunus.paged.working import empty, from_array, full, open, zeros

__all__ = [
    "ChecksumError",
    "File",
    "Mismatch",
    "PagedArray",
    "PagedBSR",
    "PagedExpr",
    "PagedFFN",
    "Pager",
    "Plan",
    "default_pager",
    "empty",
    "follow",
    "from_array",
    "from_file",
    "full",
    "open",
    "parse_bytes",
    "record",
    "zeros",
]
