"""Which hidden units of a model take part: what a call's ``prune`` and ``keep`` mean."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from prunus._construct import count_of
from prunus._dtypes import Array
from prunus.llm.calibration import Calibration, Rule
from prunus.llm.weights import Weights
from prunus.pruning._checks import check_share
from prunus.pruning.policies import Policy, Statistics, foreseen, largest

__all__ = ["Above", "Foreseen", "Prune", "Ranked", "Tally", "policies"]

# What ``prune`` may be: "exact", a calibration or the path of one.
Prune = str | os.PathLike[str] | Calibration
EXACT: Final = "exact"


class Tally:
    """Counts live units over calls.

    Attributes
    ----------
    live, total : int
        Units that were live for a token, and all that there were.
    """

    def __init__(self) -> None:
        self.live = self.total = 0

    def add(self, live: Array) -> Array:
        """Count what a policy decided, and return it."""
        self.live += int(np.count_nonzero(live))
        self.total += live.size
        return live

    @property
    def share(self) -> float:
        """Live share; 1 where nothing was decided."""
        return self.live / self.total if self.total else 1.0


class Ranked(Policy):
    """Keeps the units with the largest magnitudes, times what each unit weighs.

    Parameters
    ----------
    keep : float
        Share that each token keeps: rounded up.
    weights : ndarray of float32, optional
        Shape (units,): how much a unit's magnitude moves the layer's output.
    tally : Tally
        What counts.
    """

    scope = "row"

    def __init__(self, keep: float, weights: Array | None, tally: Tally) -> None:
        self.keep, self.weights, self.tally = keep, weights, tally

    def select(self, statistics: Statistics) -> Array:
        """Return the units that are kept."""
        scores = statistics.norms if self.weights is None else statistics.norms * self.weights
        count = max(count_of(self.keep, scores.shape[1]), 1)
        return self.tally.add(largest(scores, np.full(len(scores), count), None))


class Above(Policy):
    """Keeps the units whose score is above a threshold; NaN is kept.

    Parameters
    ----------
    rule : Rule
        The threshold, and how units are scored.
    tally : Tally
        What counts.
    """

    scope = "row"

    def __init__(self, rule: Rule, tally: Tally) -> None:
        self.rule, self.tally = rule, tally
        self._inputs = threading.local()  # of the call that each thread is in

    def foresee(self, x: Array, branches: int) -> Array | None:
        """Foresee nothing, but take note of the inputs: what is not computed yet is guessed from them."""
        self._inputs.x = None if self.rule.guess is None else np.asarray(x, np.float32)
        return None

    def select(self, statistics: Statistics) -> Array:
        """Return the units that are kept."""
        scores = self.rule.scores(statistics.norms, self._inputs.x)
        return self.tally.add(~(scores <= self.rule.tau))


class Foreseen(Policy):
    """A policy that foresees, with its live units counted.

    Parameters
    ----------
    policy : Policy
        Such as a :class:`prunus.Predictor`.
    tally : Tally
        What counts.
    """

    scope = "row"

    def __init__(self, policy: Policy, tally: Tally) -> None:
        self.policy, self.tally = policy, tally

    def foresee(self, x: Array, branches: int) -> Array | None:
        """Return what the policy foresees."""
        found = foreseen(self.policy, x, branches)
        return None if found is None else self.tally.add(found)

    def select(self, statistics: Statistics) -> Array:
        """Return what the policy selects."""
        return self.tally.add(self.policy.select(statistics))


def policies(
    weights: Weights, prune: Prune | None, keep: float | None, tally: Tally
) -> Sequence[Policy] | None:
    """Return what prunes each layer, or None if nothing does.

    Parameters
    ----------
    weights : Weights
        The model.
    prune : "exact", Calibration, path, or None
        "exact": nothing is pruned, because SiLU leaves nothing at 0. A calibration: its thresholds, or its
        predictors where the model was packed with ``decide="predictor"``. None: the largest magnitudes.
    keep : float, optional
        Share of hidden units to keep; 1 without it.
    tally : Tally
        Counts what is live.

    Raises
    ------
    ValueError
        If ``keep`` is not above 0 and at most 1, is given with "exact", is missing where a calibration needs
        it, or the calibration is of another model or lacks what the model's layout needs.
    """
    share = None if keep is None else check_share(keep, "keep")
    if isinstance(prune, str) and prune == EXACT:
        if share not in (None, 1.0):
            raise ValueError(f'prune="exact" prunes nothing: keep={keep} contradicts it')
        return None
    if prune is None:
        if share in (None, 1.0):
            return None
        if weights.decide == "predictor":
            raise ValueError(
                "the model was packed with decide='predictor': keep= needs prune= with a calibration that "
                "has predictors (`python -m prunus llm calibrate --rank`)"
            )
        return [Ranked(share or 1.0, None, tally) for _ in weights.layers]
    found = prune if isinstance(prune, Calibration) else Calibration.load(prune)
    found.check(weights.config)
    if share is None:
        raise ValueError("a calibration serves any share of units: say which with keep=")
    if share == 1.0:
        return None
    if weights.decide == "predictor":
        return [Foreseen(one, tally) for one in found.predictors(share)]
    return [Above(rule, tally) for rule in found.rules(weights.decide, share)]
