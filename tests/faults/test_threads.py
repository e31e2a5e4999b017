"""Many Python threads at once, and what they may do meanwhile."""

import threading

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, F32, run_python, sparse, values


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_many_threads_at_once(dtype):
    rng = np.random.default_rng(0)
    cases = []
    for n in (1, 5, 40, 64):
        W = sparse(rng, (600, 500), (16, 32), dtype)
        x, y = values(rng, (500, n), dtype), values(rng, (n, 600), dtype)
        P = W.pack()
        for call in (lambda W=W, x=x: W @ x, lambda W=W, y=y: y @ W, lambda P=P, x=x: P @ x):
            cases.append((call, call()))
    faults = []
    gate = threading.Barrier(8)

    def work(seed):
        order = np.random.default_rng(seed)
        gate.wait()
        for _ in range(30):
            call, expected = cases[order.integers(len(cases))]
            with pr.num_threads(int(order.integers(1, 5))):
                if call().tobytes() != expected.tobytes():
                    faults.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_other_threads_run_during_a_product():
    # Were the interpreter's lock held, the other thread could not end the product.
    status, out, error = run_python("""
import os, signal, threading, time
import numpy as np
import prunus as pr

# A job in the background inherits that the signal is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
W = pr.BSR.from_dense(np.ones((256, 1 << 16), np.float32), blocksize=64)
x = np.broadcast_to(np.ones((1, 1), np.float32), (1 << 16, 1 << 20))  # a minute or more
steps = []

def other():
    for step in range(10):
        time.sleep(0.05)
        steps.append(step)
    os.kill(os.getpid(), signal.SIGINT)

thread = threading.Thread(target=other)
try:
    thread.start()
    with pr.num_threads(1):
        W @ x
except KeyboardInterrupt:
    print("interrupted after", len(steps))
else:
    print("finished")
""")
    assert (status, out.strip()) == (0, "interrupted after 10"), error
