"""Settings that hold for every suite."""

import os

from hypothesis import HealthCheck, settings

from prunus import _core
from prunus.paged import pagers
from support import plain_pager

# The same examples in every run, so that a red run is a change's own fault.
# HYPOTHESIS_PROFILE=explore looks for new ones.
SLOW = [HealthCheck.too_slow]
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=SLOW)
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Where the compiled module has no pager, or on request, arrays on disk are tested with one in plain Python.
if os.environ.get("PRUNUS_TEST_PAGER") == "plain" or not hasattr(_core, "Pager"):
    pagers.set_backend(plain_pager.Pager)
