"""Which pager tests run on: the compiled one, or where a build has none the one in plain Python."""

import os

from prunus import _core
from prunus.paged import pagers


def use():
    """Make sure that there is a pager; called by conftest.py, and by scripts that tests start.

    PRUNUS_TEST_PAGER=plain asks for the one in plain Python.
    """
    if os.environ.get("PRUNUS_TEST_PAGER") == "plain" or not hasattr(_core, "Pager"):
        from support.plain_pager import Pager

        pagers.set_backend(Pager)
