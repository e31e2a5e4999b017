"""Tasks on torch's threads: the same bits, signals, processes that fork, and the way back."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import prunus as pr
from prunus.torch import teams

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs an OpenMP runtime of Linux")


@pytest.fixture
def lent():
    if not teams.borrow():
        pytest.skip("torch has no OpenMP runtime with GOMP_parallel here")
    yield
    teams.give_back()
    teams.borrow()


@pytest.fixture
def product():
    rng = np.random.default_rng(3)
    w = pr.BSR.from_dense(rng.standard_normal((512, 640), np.float32), blocksize=32, density=0.4)
    x = rng.standard_normal((640, 300), np.float32)
    return lambda: w @ x


def test_bits_are_those_of_our_own_threads(lent, product):
    found = product()
    assert teams.borrowed()
    teams.give_back()
    assert not teams.borrowed()
    np.testing.assert_array_equal(product(), found)


def test_many_callers_at_once(lent, product):
    expected, wrong = product(), []

    def work():
        for _ in range(20):
            if not np.array_equal(product(), expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_errors_come_back(lent):
    w = pr.BSR.from_dense(np.ones((64, 64), np.float32), blocksize=8)
    w.indices[:] = 99
    with pytest.raises(ValueError, match="ind"):
        w @ np.ones((64, 8), np.float32)


def run(code, environment=None):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_forked_child_has_threads_of_its_own():
    code = """
import os, warnings
import numpy as np, prunus as pr, prunus.torch as pt
w = pr.BSR.from_dense(np.ones((512, 512), np.float32), blocksize=32)
x = np.ones((512, 256), np.float32)
expected = w @ x
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(w @ x, expected) else 1)
assert os.waitpid(child, 0)[1] == 0
print("both")
"""
    done = run(code)
    assert done.stdout.strip() == "both", done.stderr


def test_ctrl_c_stops_a_long_call():
    code = """
import numpy as np, prunus as pr, prunus.torch as pt
rng = np.random.default_rng(0)
w = pr.BSR.from_dense(rng.standard_normal((4096, 4096), np.float32), blocksize=32)
x = rng.standard_normal((4096, 40000), np.float32)
print("begun", flush=True)
while True:
    w @ x
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == "begun"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told


def test_it_can_be_left_alone():
    code = "import prunus.torch as pt; print(pt.teams.borrowed())"
    done = run(code, {"PRUNUS_OPENMP": "0"})
    assert done.stdout.strip() == "False", done.stderr


def test_as_many_threads_as_torch():
    code = """
import threading, torch, prunus as pr, prunus.torch as pt
def elsewhere():
    found = []
    thread = threading.Thread(target=lambda: found.append(pr.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]
first = pr.get_num_threads()
torch.set_num_threads(3)
then = pr.get_num_threads(), elsewhere()
with pr.num_threads(2):
    said = pr.get_num_threads()
class Told(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i): return pr.get_num_threads()
import warnings
warnings.simplefilter("ignore")
workers = [int(n) for n in torch.utils.data.DataLoader(Told(), num_workers=1, batch_size=None)]
print(first, then, said, workers)
"""
    for environment, expected in (
        ({"OMP_NUM_THREADS": "1"}, "1 (3, 3) 2 [1, 1]"),
        ({"OMP_NUM_THREADS": "1", "PRUNUS_OPENMP": "0"}, "1 (3, 3) 2 [1, 1]"),
        ({"OMP_NUM_THREADS": "1", "PRUNUS_NUM_THREADS": "5"}, "5 (5, 5) 2 [5, 5]"),
    ):
        done = run(code, environment)
        assert done.stdout.strip() == expected, done.stderr


def test_show_config_says_so(lent, capsys):
    pr.show_config()
    told = capsys.readouterr().out
    assert "torch's: it has an OpenMP runtime" in told
    assert "as many as torch" in told or "PRUNUS_NUM_THREADS=" in told
