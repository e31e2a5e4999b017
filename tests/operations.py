"""Every operation that takes dense operands, with small ones: what holds for all is tested over these."""

from typing import Any, NamedTuple

import numpy as np

import prunus as pr
from helpers import scan_operands


class Operation(NamedTuple):
    """A function, and what it takes by name: operands, and options that are none."""

    function: Any
    operands: dict[str, Any]
    options: dict[str, Any]

    def __call__(self, **changes):
        return self.function(**{**self.operands, **self.options, **changes})


def pack_and_run(x, prune=None, activation="relu", branch=1, **weights):
    return pr.FFN.pack(**weights)(x, prune=prune, activation=activation, branch=branch)


def predict(x, w_up, w_gate=None, b_up=None, **options):
    p = pr.Predictor.fit(x, w_up, w_gate=w_gate, b_up=b_up, rank=3, keep=0.5, **options)
    return p.scores(np.ones((2, 6), np.float32))


def evaluate(x, w_up, w_down, b_up):
    p = pr.Predictor.fit(np.eye(6) + 1, np.ones((12, 6)) + np.eye(12, 6), rank=3, keep=0.5)
    return np.array(list(p.evaluate(x, w_up, w_down, b_up=b_up).values()))


def calibrate(samples, w_up, w_down):
    return np.array(pr.calibrate(pr.FFN.pack(w_up, w_down), samples, target=0.3).tau)


def operations(dtype=np.float32):
    """Return operations by name."""
    rng = np.random.default_rng(5)

    def array(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, up, down, gate = array(8, 6), array(12, 6), array(5, 12), array(12, 6)
    layer = {"w_up": up, "w_down": down}
    biases = {"b_up": array(12), "b_down": array(5)}
    W = pr.BSR.from_dense(array(6, 8), blocksize=2)
    experts = {"w_up": array(3, 12, 6), "w_down": array(3, 5, 12), "w_gate": array(3, 12, 6)}
    wide = np.float64 if dtype == np.float64 else np.float32
    scan = scan_operands(rng, (2,), 6, 8, 3, dtype, dtype) | {"state": np.ones((2, 8, 3), wide)}
    every = {
        "matmul": (pr.matmul, {"b": array(8, 3)}, {"a": W}),
        "matmul, bias": (pr.matmul, {"a": array(3, 6), "bias": array(8)}, {"b": W}),
        "@": (lambda x: W @ x, {"x": array(8, 3)}, {}),
        "@ from the left": (lambda x: x @ W, {"x": array(3, 6)}, {}),
        "sddmm": (pr.sddmm, {"a": array(6, 4), "b": array(4, 8)}, {"mask": W.mask}),
        "from_dense": (pr.BSR.from_dense, {"w": array(6, 8)}, {"blocksize": 2}),
        "linear": (pr.linear, {"x": x, "w": up, "b": array(12)}, {"branch": 4}),
        "FFN": (pack_and_run, {"x": x, **layer, "w_gate": gate, **biases}, {}),
        "ffn": (pr.ffn, {"x": x, **layer, "w_gate": gate, **biases}, {}),
        "moe": (pr.moe, {"x": x, "router": array(3, 6), **experts}, {}),
        "moe, logits": (pr.moe, {"x": x, "logits": array(8, 3), **experts}, {"router": None}),
        "attention": (
            pr.attention,
            {"q": array(2, 12, 8), "k": array(2, 12, 8), "v": array(2, 12, 6)},
            {"blocksize": 4},
        ),
        "selective_scan": (pr.selective_scan, scan, {}),
        "calibrate": (calibrate, {"samples": x, **layer}, {}),
        "Predictor.fit": (predict, {"x": x, "w_up": up, "w_gate": gate, "b_up": array(12)}, {}),
        "Predictor.evaluate": (evaluate, {"x": x, **layer, "b_up": array(12)}, {}),
    }
    return {name: Operation(*parts) for name, parts in every.items()}


NAMES = list(operations())


def plain(result):
    """Return a result as a float64 array."""
    dense = result.toarray() if isinstance(result, pr.BSR) else result
    assert isinstance(dense, np.ndarray)
    return dense.astype(np.float64)
