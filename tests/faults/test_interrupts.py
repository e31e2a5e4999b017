"""Ctrl-C and other signals stop a long call.

Each product here is one call of 2**44 multiply-adds, a minute or more, on a dense operand of zero strides and
with a result that is never touched as a whole. What is asserted is that it was interrupted; the bound on the
time only tells that from its end.
"""

import sys
import time

import pytest

from helpers import run_python

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import prunus as pr

# A job in the background inherits that the signal is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

K, N = 1 << 16, 1 << 20
W = pr.BSR.from_dense(np.ones((256, K), np.float32), blocksize=64)
x = np.broadcast_to(np.ones((1, 1), np.float32), (K, N))

def product():
    return W @ x

def interrupt():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    print("sent", time.time(), flush=True)
"""

LONG = {
    "one thread": "pr.num_threads(1)",
    "two threads": "pr.num_threads(2)",
    "packed": "W = W.pack()",
    "token-major": "product = lambda: x.T @ W.T",
    "transposed": "V = W.T.copy(); product = lambda: V.T @ x",
    "sampled": """
mask = pr.BlockMask.full((4096, 1 << 14), 64)
a, b = np.broadcast_to(x[:1, :1], (4096, 1 << 18)), np.broadcast_to(x[:1, :1], (1 << 18, 1 << 14))
product = lambda: pr.sddmm(a, b, mask)
""",
    "attention": "q = np.broadcast_to(x[:1, :1], (1 << 18, 64)); product = lambda: pr.attention(q, q, q)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
@pytest.mark.parametrize("setting", LONG)
def test_ctrl_c(setting):
    status, out, error = run_python(
        PRELUDE
        + LONG[setting]
        + """
threading.Thread(target=interrupt).start()
try:
    product()
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
else:
    print("finished")
"""
    )
    assert status == 0, error
    words = out.split()
    assert "interrupted" in words, (out, error)
    sent, ended = (float(words[words.index(word) + 1]) for word in ("sent", "interrupted"))
    assert ended - sent < 10


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_ctrl_c_ends_a_script():
    begun = time.monotonic()
    status, _, error = run_python(PRELUDE + "threading.Thread(target=interrupt).start()\nproduct()")
    assert status != 0
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_what_a_handler_raises_is_what_the_caller_sees():
    status, out, error = run_python(
        PRELUDE
        + """
class Stop(Exception):
    pass

def handler(number, frame):
    raise Stop("enough")

signal.signal(signal.SIGINT, handler)
for threads in (1, 2):
    threading.Thread(target=interrupt).start()
    try:
        with pr.num_threads(threads):
            product()
    except Stop as error:
        assert error.args == ("enough",)
        assert error.__cause__ is None
    else:
        print("finished")
# A handler that raises nothing leaves the product alone, and the next one is right.
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
sender = threading.Thread(target=interrupt)
sender.start()
while not seen:
    small = W @ x[:, :8]
    assert (small == K).all()
sender.join()  # it prints, too
print("fine")
"""
    )
    assert status == 0, error
    assert out.split()[-1] == "fine"
    assert "finished" not in out
