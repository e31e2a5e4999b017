"""Which pager tests run on: the compiled one, or where a build has none the one in plain Python."""

from prunus import _core
from prunus.paged import pagers


def use():
    """Make sure that there is a pager; to be called by test modules and by the scripts they start."""
    if not hasattr(_core, "Pager"):
        from support.plain_pager import Pager

        pagers.set_backend(Pager)
