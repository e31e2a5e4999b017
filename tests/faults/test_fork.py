"""A child process that multiplies does not hang, whatever the parent's pool was doing."""

import sys

import pytest

from helpers import run_python

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this platform does not fork")

PRELUDE = """
import multiprocessing, os, sys, threading, warnings
import numpy as np
import prunus as pr

warnings.filterwarnings("ignore", category=DeprecationWarning)  # forking with threads is the point
rng = np.random.default_rng(0)
w = rng.standard_normal((1024, 1024)).astype(np.float32)
W = pr.BSR.from_dense(w, blocksize=32, density=0.5)
x = rng.standard_normal((1024, 64)).astype(np.float32)

def product(threads=2):
    with pr.num_threads(threads):
        return W @ x

expected = product()  # starts the parent's pool
"""

FORK = """
def fork(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
    return child

def ended_well(child):
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
"""


def run(script):
    status, out, error = run_python(PRELUDE + script)
    assert (status, out.strip()) == (0, "fine"), error


def test_children_of_a_parent_with_a_pool():
    run(
        FORK
        + """
same = lambda: all(np.array_equal(product(n), expected) for n in (2, 3, 1, 2))
for _ in range(5):
    assert ended_well(fork(same))
assert same()  # the parent's pool works on
print("fine")
"""
    )


def test_children_of_children():
    run(
        FORK
        + """
same = lambda: np.array_equal(product(), expected)
assert ended_well(fork(lambda: same() and ended_well(fork(same)) and same()))
print("fine")
"""
    )


def test_forking_while_other_threads_multiply():
    run(
        FORK
        + """
stop = threading.Event()

def busy():
    while not stop.is_set():
        product(3)

threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
fine = [ended_well(fork(lambda: np.array_equal(product(), expected))) for _ in range(10)]
stop.set()
for thread in threads:
    thread.join()
assert all(fine)
print("fine")
"""
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="NumPy's own BLAS does not survive a fork on macOS")
def test_multiprocessing():
    run("""
def work(seed):
    return product(2)

with multiprocessing.get_context("fork").Pool(2) as pool:
    for got in pool.map(work, range(4)):
        assert np.array_equal(got, expected)
assert np.array_equal(product(), expected)
print("fine")
""")
