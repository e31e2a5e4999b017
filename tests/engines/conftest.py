import os

import numpy as np
import pytest

import prunus as pr
from prunus import engines

# Simulated chips differ in their figures: one stands for all.
# Only the CPU's kernels differ with the SIMD level that is asked for.
NAMES = (
    ["cpu"]
    if "PRUNUS_SIMD" in os.environ
    else [name for name in engines.names() if not name.startswith("tensix:") or name == "tensix:n150"]
)


# Variants of a test that stay where few are asked for.
FEW = 2


@pytest.fixture(params=NAMES, autouse=True)
def engine(request):
    """Every test of this folder runs on every engine there is."""
    with pr.device(request.param) as engine:
        yield engine


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(7)


def pytest_collection_modifyitems(config, items):
    """With PRUNUS_BRIEF=1, leave most variants of a test out where kernels are interpreted.

    Of each test a few stay, in float32. The tests of tensors (tests/cuda) have every dtype; ``just cuda-all``
    has all of these too.
    """
    if os.environ.get("PRUNUS_BRIEF") != "1":
        return
    here, left, variants = os.path.dirname(__file__), set(), {}
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if not str(item.path).startswith(here) or parameters.get("engine") != "cuda":
            continue
        if {one.name for one in parameters.values() if isinstance(one, np.dtype)} - {"float32"}:
            left.add(item)
        else:
            variants.setdefault((item.path, item.originalname), []).append(item)
    for same in variants.values():
        kept = {same[i * (len(same) - 1) // (FEW - 1)] for i in range(FEW)}
        left.update(item for item in same if item not in kept)
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test of a dtype that the engine does not declare passes when the engine refuses it by name."""
    engine = pyfuncitem.funcargs.get("engine")
    parameters = getattr(pyfuncitem, "callspec", None)
    if engine is None or parameters is None:
        return None
    lacks = [
        one.name
        for one in parameters.params.values()
        if isinstance(one, np.dtype) and one.kind != "V" and one not in engine.dtypes
    ]
    if not lacks:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with pytest.raises(pr.tensix.UnsupportedError, match=f"has no ({'|'.join(lacks)})"):
        pyfuncitem.obj(**arguments)
    return True
