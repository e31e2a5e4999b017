"""Tensors on the device: on a GPU where there is one, or in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest


def _why_not():
    """Say why nothing here can run, or nothing."""
    for name in ("torch", "triton"):
        if find_spec(name) is None:
            return f"needs {name}, which is not installed"
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return "needs a GPU, or TRITON_INTERPRET=1"


WHY_NOT = _why_not()


class Missing(pytest.Module):
    """A file whose imports are missing: skipped, with the reason."""

    def collect(self):
        pytest.skip(WHY_NOT, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if find_spec("torch") is None or find_spec("triton") is None:
        return Missing.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(config, items):
    if WHY_NOT is None:
        shorten(config, items)
        return
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here + os.sep):
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


def shorten(config, items):
    """With PRUNUS_BRIEF=1, leave all but the first, middle and last variants of each test out."""
    if os.environ.get("PRUNUS_BRIEF") != "1":
        return
    here, variants = os.path.dirname(__file__), {}
    for item in items:
        if str(item.path).startswith(here + os.sep):
            variants.setdefault((item.path, item.originalname), []).append(item)
    left = set()
    for same in variants.values():
        kept = {same[0], same[len(same) // 2], same[-1]}
        left.update(item for item in same if item not in kept)
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


@pytest.fixture
def place():
    """Where kernels run."""
    from prunus.cuda.runtime import place

    return place()


@pytest.fixture(autouse=True)
def device():
    """The engine, active: torch's host tensors stand for the GPU's where kernels are interpreted."""
    import prunus as pr

    with pr.device("cuda") as engine:
        yield engine


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(7)
