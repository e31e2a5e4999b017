"""Attention over NumPy's arrays."""

from __future__ import annotations

from prunus.cuda.host.base import Host

__all__ = ["Attention"]


class Attention(Host):
    """See :class:`prunus.engines.base.Engine`."""
