"""Attention over a long context, where each question concerns a few places.

The context is a book of chapters: the keys of a chapter resemble each other. A question is about one
chapter, so nearly all of its softmax lies there, and the other blocks of keys might as well not exist.
Pooled scores (the mean of a block's queries against the mean of a block's keys) say which blocks those are
before any is read. Queries of a block ask about the same chapter, as neighbours in a text do. Keys, values
and queries are made up.

Then the model speaks: one query at a time, against all keys so far. Such a step waits for memory alone, so
what is not read is time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import prunus as pr


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return causal attention of some rows, in float64."""
    out = np.zeros((len(q), len(rows), v.shape[-1]))
    for head in range(len(q)):
        for i, row in enumerate(rows):
            last = row + 1 + k.shape[1] - q.shape[1]
            scores = k[head, :last].astype(np.float64) @ q[head, row] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[head, i] = weights @ v[head, :last] / weights.sum()
    return out


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Compare ways to attend; ``size`` is "small" or "full"."""
    heads, length, dim, block = (2, 512, 32, 32) if size == "small" else (8, 8192, 64, 64)
    rng = np.random.default_rng(0)
    blocks = length // block
    # A chapter for each block of keys, and one that each block of queries asks about: any up to its own.
    chapters = rng.standard_normal((heads, blocks, dim))
    asked = np.stack([rng.integers(0, np.arange(blocks) + 1) for _ in range(heads)])
    k = np.repeat(chapters, block, axis=1) + 0.3 * rng.standard_normal((heads, length, dim))
    q = np.repeat(np.take_along_axis(chapters, asked[..., None], axis=1), block, axis=1)
    q = 3 * q + 0.3 * rng.standard_normal((heads, length, dim))
    v = rng.standard_normal((heads, length, dim))
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    rows = np.unique(rng.integers(0, length, 50))
    exact = plain(q, k, v, rows)

    ways = {
        "all blocks": None,
        "its own block and one more": pr.TopK(count=2),
        "blocks above 1 %": pr.Threshold(0.01),
    }
    found: dict[str, dict[str, float]] = {}
    print(f"{heads} heads, {length} queries and keys of {dim}, blocks of {block}")
    print(f"{'':34} {'ms':>9} {'error':>9} {'live':>7}")

    def show(name: str, y: np.ndarray, want: np.ndarray, seconds: float, live: float) -> None:
        error = float(np.abs(y - want).max() / np.abs(want).max())
        found[name] = {"error": error, "live": live}
        print(f"{name:34} {seconds * 1e3:9.2f} {error:9.1e} {live:7.1%}")

    for name, policy in ways.items():
        began = time.perf_counter()
        with pr.trace() as t:
            y = pr.attention(q, k, v, causal=True, prune=policy, blocksize=block)
        show(name, y[:, rows], exact, time.perf_counter() - began, t.live_fraction)

    # One step of decoding: the last query, all keys.
    one, want = q[:, -1:], plain(q[:, -1:], k, v, np.array([0]))
    for name, policy in ways.items():
        began = time.perf_counter()
        with pr.trace() as t:
            y = pr.attention(one, k, v, causal=True, prune=policy, blocksize=block)
        show("decode, " + name, y, want, time.perf_counter() - began, t.live_fraction)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
