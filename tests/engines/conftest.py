import pytest

import prunus as pr
from prunus import engines


@pytest.fixture(params=engines.names(), autouse=True)
def engine(request):
    """Every test of this folder runs on every engine there is."""
    with pr.device(request.param) as engine:
        yield engine


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(7)
