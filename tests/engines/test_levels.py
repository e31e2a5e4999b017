"""Levels can be chosen after the start; which one is in use is visible."""

from helpers import run_python

SCRIPT = """
import numpy as np
import prunus as pr
from prunus import _core

rng = np.random.default_rng(0)
W = pr.BSR.from_dense(rng.standard_normal((70, 90), np.float32), blocksize=16, density=0.5)
x = rng.standard_normal((90, 40), np.float32)
exact = W.toarray().astype(float) @ x
for level in _core.available_levels():
    _core.set_level(level)
    assert _core.level() == level
    assert _core.cpu_info()["level"] == level
    for w in (W, W.pack()):
        np.testing.assert_allclose(w @ x, exact, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(w @ x[:, 0], exact[:, 0], rtol=1e-4, atol=1e-4)
try:
    _core.set_level("abacus")
except ValueError as error:
    assert "scalar" in str(error) and "abacus" in str(error)
else:
    raise AssertionError("a level that does not exist was taken")
print("fine")
"""


def test_levels_in_turn(engine):
    if engine.name != "cpu":
        return  # a matter of that engine only
    status, out, error = run_python(SCRIPT)
    assert (status, out.strip(), error) == (0, "fine", "")
