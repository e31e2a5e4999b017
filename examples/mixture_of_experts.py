"""A mixture of experts: experts that nobody chose are never touched.

A router sends each token to two of sixteen experts (Shazeer et al. 2017). One token needs an eighth of the
weights; a batch needs the union of what its tokens chose. Which experts those are depends on the input, so
it is decided as the call runs. To show that the others are left alone, they are filled with NaN here: one
look at them would spoil the result.

Weights and tokens are made up; tokens of one topic resemble each other, and so choose the same experts.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import prunus as pr

EXPERTS, CHOSEN = 16, 2


def silu(x: np.ndarray) -> np.ndarray:
    """Return x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def plain(
    x: np.ndarray, router: np.ndarray, up: np.ndarray, down: np.ndarray, gate: np.ndarray
) -> np.ndarray:
    """Run each token through its experts, one after the other, in float64."""
    y = np.zeros((len(x), down.shape[1]))
    for i, token in enumerate(x.astype(np.float64)):
        logits = router @ token
        chosen = np.argsort(-logits, kind="stable")[:CHOSEN]
        weights = np.exp(logits[chosen] - logits[chosen].max())
        for e, weight in zip(chosen, weights / weights.sum(), strict=True):
            y[i] += weight * (down[e] @ (silu(gate[e] @ token) * (up[e] @ token)))
    return y


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Compare batches; ``size`` is "small" or "full"."""
    features, units = (32, 64) if size == "small" else (1024, 2048)
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    router = weights(EXPERTS, features)
    up, gate = weights(EXPERTS, units, features), weights(EXPERTS, units, features)
    down = weights(EXPERTS, features, units)
    topic = weights(1, features)
    batches = {
        "one token": weights(1, features),
        "8 tokens of one topic": topic + 0.05 * weights(8, features),
        "8 tokens of any topic": weights(8, features),
        "64 tokens of any topic": weights(64, features),
    }
    found: dict[str, dict[str, float]] = {}
    print(f"{EXPERTS} experts of {units} units, {CHOSEN} for each token, {features} features")
    print(f"{'':24} {'ms':>9} {'error':>9} {'experts':>8} {'flops skipped':>14}")
    for name, batch in batches.items():
        x = 10 * batch  # so that routers are sure of themselves
        exact = plain(x, router, up, down, gate)
        scores = x @ router.T
        hit = np.unique(np.argsort(-scores, axis=1, kind="stable")[:, :CHOSEN])
        rest = np.setdiff1d(np.arange(EXPERTS), hit)
        spoiled = [part.copy() for part in (up, down, gate)]
        for part in spoiled:
            part[rest] = np.nan
        began = time.perf_counter()
        with pr.trace() as t:
            y = pr.moe(x, router, *spoiled, top_k=CHOSEN)
        seconds = time.perf_counter() - began
        error = float(np.abs(y - exact).max() / np.abs(exact).max())
        skipped = t.flops_skipped / max(t.flops + t.flops_skipped, 1)
        found[name] = {"error": error, "experts": len(hit), "skipped": skipped}
        print(f"{name:24} {seconds * 1e3:9.2f} {error:9.1e} {len(hit):8} {skipped:14.1%}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
