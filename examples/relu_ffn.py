"""A feed-forward layer with ReLU: units that are off cost nothing downstream, or nothing at all.

Nine of ten hidden units of a trained ReLU layer are off for any one token (Li et al. 2023, "The lazy neuron
phenomenon"). Their rows of the second matrix are multiplied by 0. With ``Threshold(0)`` those rows are
neither loaded nor multiplied, and the result is the same. Who knows beforehand which units are on (here:
from the same product, by way of example) skips the first matrix as well.

The weights are made up, with biases that leave about a tenth of the units on.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import prunus as pr


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Compare ways to compute one layer; ``size`` is "small" or "full"."""
    features, units = (64, 256) if size == "small" else (2048, 8192)
    rng = np.random.default_rng(0)
    w_up = (rng.standard_normal((units, features)) / np.sqrt(features)).astype(np.float32)
    w_down = (rng.standard_normal((features, units)) / np.sqrt(units)).astype(np.float32)
    b_up = np.full(units, -1.28, np.float32)  # a standard normal is above 1.28 one time in ten
    x = rng.standard_normal((1, features)).astype(np.float32)  # one token, as in decoding
    hidden = np.maximum(x.astype(np.float64) @ w_up.T + b_up, 0)
    exact = hidden @ w_down.T

    # Packed once: each unit's row of w_up, and its column of w_down, lie contiguous in memory.
    layer = pr.FFN.pack(w_up, w_down, b_up=b_up)
    known = pr.Fixed(hidden > 0)
    strong = pr.Threshold(float(np.quantile(hidden[hidden > 0], 0.5)))
    ways = {
        "NumPy, dense": lambda: np.maximum(x @ w_up.T + b_up, 0) @ w_down.T,
        "FFN, units above 0": lambda: layer(x, activation="relu", prune=pr.Threshold(0.0)),
        "FFN, the stronger half": lambda: layer(x, activation="relu", prune=strong),
        "FFN, units known before": lambda: layer(x, activation="relu", prune=known),
    }
    found: dict[str, dict[str, float]] = {}
    print(f"{features} features, {units} hidden units, one token")
    print(f"{'':26} {'ms':>8} {'error':>9} {'live':>7} {'flops skipped':>14}")
    for name, way in ways.items():
        way()  # the first call pays for threads and memory
        began = time.perf_counter()
        with pr.trace() as t:
            y = way()
        seconds = time.perf_counter() - began
        error = float(np.abs(y - exact).max() / np.abs(exact).max())
        skipped = t.flops_skipped / max(t.flops + t.flops_skipped, 1)
        found[name] = {"error": error, "live": t.live_fraction, "skipped": skipped}
        print(f"{name:26} {seconds * 1e3:8.3f} {error:9.1e} {t.live_fraction:7.1%} {skipped:14.1%}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
