"""Importing: without a warning, and with a clear error where the environment asks for what is not there."""

import pytest

from helpers import run_python

IMPORT = "import prunus; print(prunus.get_num_threads(), prunus._core.level())"


def test_import_is_silent():
    status, out, error = run_python(IMPORT)
    assert (status, error) == (0, "")
    assert int(out.split()[0]) >= 1


@pytest.mark.parametrize("value", ["abacus", "AVX2", "avx2 ", "5"])
def test_unknown_level(value):
    status, _, error = run_python(IMPORT, PRUNUS_SIMD=value)
    assert status == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith(("ValueError", "ImportError"))
    assert "PRUNUS_SIMD" in last
    assert repr(value)[1:-1] in last
    assert "scalar" in last


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999999999999999999", " 2"])
def test_bad_number_of_threads(value):
    status, _, error = run_python(IMPORT, PRUNUS_NUM_THREADS=value)
    assert status == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith(("ValueError", "ImportError"))
    assert "PRUNUS_NUM_THREADS" in last
    assert value in last


def test_settings_are_taken():
    status, out, error = run_python(IMPORT, PRUNUS_SIMD="scalar", PRUNUS_NUM_THREADS="3")
    assert (status, out.split(), error) == (0, ["3", "scalar"], "")
    status, out, error = run_python(IMPORT, PRUNUS_SIMD="", PRUNUS_NUM_THREADS="")
    assert (status, error) == (0, "")


def test_more_threads_than_the_machine_has():
    status, out, error = run_python(
        """
import numpy as np
import prunus as pr
W = pr.BSR.from_dense(np.ones((2048, 2048), np.float32), blocksize=32)
x = np.ones((2048, 64), np.float32)
assert (W @ x == 2048).all()
print("fine")
""",
        PRUNUS_NUM_THREADS="64",
    )
    assert (status, out.strip(), error) == (0, "fine", "")
