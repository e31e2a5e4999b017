"""A fixture for tests of arrays on disk: the compiled pager, or the plain one where the build has none."""

import pytest
from support import plain_pager

from prunus import _core
from prunus.paged import pagers


@pytest.fixture
def backend():
    """Settle which pager is used; its budget is said where files are opened."""
    pagers.set_backend(None if hasattr(_core, "Pager") else plain_pager.Pager)
    yield
    pagers.set_backend(None)
