"""From logits to the next token."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from prunus._dtypes import Array

__all__ = ["Sampler", "check_seed"]


def check_seed(seed: Any) -> int | None:
    """Return a seed of random numbers, or None where there is none.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or negative.
    """
    if seed is None:
        return None
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer or None, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return int(seed)


class Sampler:
    """Picks tokens: the most likely one, or one at random.

    Parameters
    ----------
    temperature : float, default 0
        0: always the most likely token, the lowest number among equals. Above: logits are divided by it.
    top_p : float, default 1
        Only the most likely tokens that together have at least this probability are drawn from ("nucleus":
        Holtzman et al., 2020, arXiv:1904.09751).
    seed : int, optional
        Of the random numbers; without one they differ from run to run.

    Raises
    ------
    TypeError
        If ``temperature`` or ``top_p`` is no number, or ``seed`` no integer.
    ValueError
        If ``temperature`` is negative or not finite, ``top_p`` is not above 0 and at most 1, or ``seed`` is
        negative.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        numbers: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        for name, value in numbers.items():
            if type(value) is bool or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not (0 <= temperature < math.inf):
            raise ValueError(f"temperature must be finite and at least 0, got {temperature!r}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p!r}")
        self.temperature, self.top_p = float(temperature), float(top_p)
        self._random = np.random.default_rng(check_seed(seed))

    def pick(self, logits: Array) -> int:
        """Return the next token for logits (vocabulary,).

        Raises
        ------
        FloatingPointError
            If no logit is a number.
        """
        if np.isnan(logits).any():
            raise FloatingPointError("the model's logits are NaN")
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) - float(logits.max())
        with np.errstate(over="ignore"):  # -inf is what the least of temperatures makes of a difference
            scaled /= self.temperature
        shares = np.exp(scaled)
        if self.top_p < 1:
            order = np.argsort(-shares, kind="stable")
            sums = np.cumsum(shares[order])
            count = int(np.searchsorted(sums, self.top_p * sums[-1])) + 1
            chosen = order[:count]
        else:
            chosen = np.arange(len(shares))
        sums = np.cumsum(shares[chosen])
        at = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(chosen[min(int(at), len(chosen) - 1)])
