"""How exact pruned layers are, as ``python -m prunus bench pruning`` prints it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import prunus as pr
from prunus._dtypes import Array, as_dtype
from prunus._table import format_table

__all__ = ["measure", "report"]

_LAYERS = 20


class _Recorded(pr.Threshold):
    """A threshold that keeps what it was shown, so that its decisions can be counted independently."""

    def __init__(self, tau: float) -> None:
        super().__init__(tau)
        self.live: Array | None = None

    def select(self, statistics: pr.Statistics) -> Array:
        self.live = super().select(statistics)
        return self.live


def measure(dtypes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Check layers of random shapes, rows and branches: (dtype, what, finding) for each property.

    Parameters
    ----------
    dtypes : sequence of str
        Dtypes of weights and inputs.
    """
    found = []
    for dtype in dtypes:
        rng = np.random.default_rng(5)
        kind = as_dtype(dtype)
        error, same = 0.0, dict.fromkeys(("zero", "whole", "alone", "threads", "counters"), 0)
        for _ in range(_LAYERS):
            d, units, out, n, branch = (int(v) for v in rng.integers(1, (200, 400, 100, 40, 33)))
            x, up, down = (
                rng.standard_normal(shape, np.float32).astype(kind)
                for shape in ((n, d), (units, d), (out, units))
            )
            wide = [a.astype(np.float64) for a in (x, up, down)]
            want = np.maximum(wide[0] @ wide[1].T, 0) @ wide[2].T
            layer = pr.FFN.pack(up, down)
            plain = layer(x)
            exact = layer(x, prune=pr.Threshold(0.0), branch=branch)
            error = max(error, float(np.abs(exact - want).max() / max(np.abs(want).max(), 1e-30)))
            same["zero"] += bool((exact == plain).all())
            same["whole"] += bool((layer(x, prune=pr.TopK(fraction=1.0), branch=branch) == plain).all())
            policy = _Recorded(float(np.median(np.abs(wide[0] @ wide[1].T))))
            with pr.trace() as t:
                some = layer(x, prune=policy, branch=branch)
            t_row = int(rng.integers(n))
            same["alone"] += bool((layer(x[t_row], prune=policy, branch=branch) == some[t_row]).all())
            with pr.num_threads(3):
                same["threads"] += bool((layer(x, prune=policy, branch=branch) == some).all())
            assert policy.live is not None
            each = np.repeat(policy.live, branch, axis=1)[:, :units]
            flops = 2 * n * units * d + 2 * out * int(each.sum())
            same["counters"] += t.flops == flops and t.live_fraction == policy.live.mean()
        found += [
            (dtype, "ReLU, Threshold(0) against float64: largest relative error", f"{error:.1e}"),
            (dtype, "ReLU, Threshold(0) is the unpruned layer, bit by bit", _of(same["zero"])),
            (dtype, "TopK(fraction=1.0) is the unpruned layer, bit by bit", _of(same["whole"])),
            (dtype, "a row alone is the row in its batch, bit by bit", _of(same["alone"])),
            (dtype, "three threads give what one gives, bit by bit", _of(same["threads"])),
            (dtype, "counters are those of an independent count", _of(same["counters"])),
        ]
    return found


def _of(count: int) -> str:
    return f"{count} of {_LAYERS} layers"


def report(found: Sequence[tuple[str, str, str]]) -> str:
    """Make the table of `measure`."""
    return format_table(["dtype", "exactness", "found"], [list(row) for row in found], left=2)
