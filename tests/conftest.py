"""Settings that hold for every suite."""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

from support import backend, interpreter

# The same examples in every run, so that a red run is a change's own fault.
# HYPOTHESIS_PROFILE=explore looks for new ones.
SLOW = [HealthCheck.too_slow]
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

backend.use()
interpreter.use()


@pytest.fixture(autouse=True)
def gradients():
    """Torch records gradients again: the benchmark turns that off in the process that it has for itself."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
