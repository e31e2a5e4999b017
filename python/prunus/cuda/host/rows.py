"""Products of rows with tables of units, of NumPy's arrays."""

from __future__ import annotations

from prunus.cuda.host.base import Host

__all__ = ["Rows"]


class Rows(Host):
    """See :class:`prunus.engines.base.Engine`."""
