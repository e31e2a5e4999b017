"""A Mamba block: a selective state-space model whose gates prune.

As published (Gu and Dao 2023, figure 3 and algorithm 2): a projection makes inputs and gates, a short
causal convolution mixes neighbours in time, and the scan carries a state of a few values for each channel.
Its rates depend on the input, so it can keep or forget. Where a gate is closed its channel's output is
multiplied by nearly nothing: such outputs are dead, and what they would have cost is left out. The state is
of constant size: one step takes the same time and memory whether it is the tenth or the millionth.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

import prunus as pr

TAPS = 4  # of the convolution


def silu(x: np.ndarray) -> np.ndarray:
    """Return x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


@dataclass
class Mamba:
    """Weights of one block, made up: no trained model is needed to show that the arithmetic is right."""

    w_in: np.ndarray  # (2 * channels, features): inputs and gates
    w_conv: np.ndarray  # (channels, TAPS)
    w_bc: np.ndarray  # (2 * states, channels): what is written and read
    w_delta: np.ndarray  # (rank, channels), then (channels, rank): a low rank is enough for step sizes
    w_rank: np.ndarray
    delta_bias: np.ndarray  # (channels,)
    A: np.ndarray  # (channels, states)
    D: np.ndarray  # (channels,)
    w_out: np.ndarray  # (features, channels)

    @classmethod
    def random(cls, features: int, states: int, rng: np.random.Generator) -> Mamba:
        """Draw weights as the authors initialise them."""
        channels, rank = 2 * features, max(features // 16, 1)

        def matrix(rows: int, cols: int) -> np.ndarray:
            return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

        # Rates -1, -2, ... for the states, and steps between 0.001 and 0.1 (section 3.6).
        steps = np.exp(rng.uniform(np.log(0.001), np.log(0.1), channels))
        w_in = matrix(2 * channels, features)
        # Half of the gates lean towards closed: a made-up stand-in for what training does.
        w_in[channels + channels // 2 :] *= 0.05
        return cls(
            w_in=w_in,
            w_conv=matrix(channels, TAPS),
            w_bc=matrix(2 * states, channels),
            w_delta=matrix(rank, channels),
            w_rank=matrix(channels, rank),
            delta_bias=np.log(np.expm1(steps)).astype(np.float32),
            A=-np.tile(np.arange(1, states + 1, dtype=np.float32), (channels, 1)),
            D=np.ones(channels, np.float32),
            w_out=matrix(features, channels),
        )

    def inputs(self, x: np.ndarray, past: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return u, delta, B, C and z of some steps; ``past`` holds the TAPS - 1 inputs before them."""
        channels, states = self.A.shape
        xz = x @ self.w_in.T
        x, z = xz[:, :channels], xz[:, channels:]  # views: the scan reads them where they are
        row = np.concatenate([past, x])
        u = silu(sum(row[i : i + len(x)] * self.w_conv[:, i] for i in range(TAPS)))
        past[:] = row[len(row) - len(past) :]
        bc = u @ self.w_bc.T
        return u, u @ self.w_delta.T @ self.w_rank.T, bc[:, :states], bc[:, states:], z

    def __call__(self, x: np.ndarray, prune: pr.Policy | None = None) -> np.ndarray:
        """Run a whole sequence, (length, features)."""
        past = np.zeros((TAPS - 1, len(self.D)), np.float32)
        u, delta, B, C, z = self.inputs(x, past)
        y = pr.selective_scan(
            u, delta, self.A, B, C, self.D, z, delta_bias=self.delta_bias, delta_softplus=True, prune=prune
        )
        return y @ self.w_out.T

    def step(self, x: np.ndarray, past: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Run one step, (features,), on what is remembered: TAPS - 1 inputs, and the state."""
        u, delta, B, C, z = (part[0] for part in self.inputs(x[None], past))
        y = pr.selective_step(
            u, delta, self.A, B, C, self.D, z, delta_bias=self.delta_bias, delta_softplus=True, state=state
        )
        return y @ self.w_out.T

    def plain(self, x: np.ndarray) -> np.ndarray:
        """Run the same in NumPy and float64, as one would write it down."""
        wide = Mamba(**{name: value.astype(np.float64) for name, value in vars(self).items()})
        u, delta, B, C, z = wide.inputs(x.astype(np.float64), np.zeros((TAPS - 1, len(self.D))))
        delta = np.log1p(np.exp(delta + wide.delta_bias))
        h, y = np.zeros(self.A.shape), np.zeros(u.shape)
        for t in range(len(x)):
            h = np.exp(delta[t][:, None] * wide.A) * h + (delta[t] * u[t])[:, None] * B[t]
            y[t] = h @ C[t] + wide.D * u[t]
        return (y * silu(z)) @ wide.w_out.T


def main(size: str = "full") -> dict[str, dict[str, float]]:
    """Compare ways to run a block; ``size`` is "small" or "full"."""
    length, features = (64, 32) if size == "small" else (2048, 512)
    rng = np.random.default_rng(0)
    block = Mamba.random(features, 16, rng)
    x = rng.standard_normal((length, features)).astype(np.float32)
    exact = block.plain(x)
    found: dict[str, dict[str, float]] = {}
    print(f"{length} steps, {2 * features} channels of 16 states")
    print(f"{'':24} {'ms':>9} {'error':>9} {'live':>7} {'flops skipped':>14}")

    def show(name: str, y: np.ndarray, seconds: float, live: float = 1.0, skipped: float = 0.0) -> None:
        error = float(np.abs(y - exact).max() / np.abs(exact).max())
        found[name] = {"error": error, "live": live, "skipped": skipped}
        print(f"{name:24} {seconds * 1e3:9.2f} {error:9.1e} {live:7.1%} {skipped:14.1%}")

    # Known beforehand, channels that are closed for all steps cost nothing at all: here, half of them.
    half = np.arange(2 * features) < features
    policies = {
        "scan": None,
        "scan, exact pruning": pr.Threshold(0.0),
        "scan, gate above 0.05": pr.Threshold(0.05),
        "scan, half the gates": pr.TopK(fraction=0.5),
        "scan, known channels": pr.Fixed(half),
    }
    for name, policy in policies.items():
        began = time.perf_counter()
        with pr.trace() as t:
            y = block(x, prune=policy)
        seconds = time.perf_counter() - began
        show(name, y, seconds, t.live_fraction, t.flops_skipped / (t.flops + t.flops_skipped))

    # Real time: what arrives is answered at once, from a state that never grows.
    past, state = np.zeros((TAPS - 1, 2 * features), np.float32), np.zeros(block.A.shape, np.float32)
    began = time.perf_counter()
    steps = np.stack([block.step(row, past, state) for row in x])
    show("step by step", steps, time.perf_counter() - began)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
