"""Arrays in files, through a pager with a budget of memory.

``pr.open`` and ``pr.save`` are the way in and out for files that other programs share; this package has the
rest.
"""

from prunus.paged.checksums import ChecksumError, Mismatch
from prunus.paged.files import File
from prunus.paged.pagers import Pager, default_pager, parse_bytes
from prunus.paged.save import save
from prunus.paged.sparse import PagedBSR

__all__ = ["ChecksumError", "File", "Mismatch", "PagedBSR", "Pager", "default_pager", "parse_bytes", "save"]
