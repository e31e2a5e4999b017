"""Tests of prunus.torch; skipped by name where torch is missing."""

from importlib.util import find_spec

import pytest


class Missing(pytest.Module):
    """A file whose imports are missing: skipped, with the reason."""

    def collect(self):
        pytest.skip("needs torch, which is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if find_spec("torch") is None:
        return Missing.from_parent(parent, path=module_path)
    return None


@pytest.fixture
def generator():
    """Torch's random numbers, the same in every run."""
    import torch

    torch.manual_seed(11)
    return torch.Generator().manual_seed(7)
