"""``llm calibrate``: from a text to what each hidden unit weighs, thresholds, and predictors.

Of a hidden unit ``silu(g) * u`` whose row of the down-projection is d, ``|silu(g)| |u| ||d||`` is what
leaving it out costs. Where the up-projection decides, |u| is known and the rest is not yet: the unit's weight
is ``||d||`` times the root of the mean square of ``silu(g)`` over the text; where the gate decides, likewise
with u. With predictors, what is not known yet is guessed for each token instead, from a low-rank
approximation of its matrix. Thresholds are quantiles of the scores, one set a layer, as those of CATS (Lee et
al., 2024, arXiv:2404.08763) are of a gate's magnitudes. Where neither side is computed before units are
chosen, :class:`prunus.Predictor` guesses both.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from prunus import engines
from prunus._dtypes import BFLOAT16, F32, Array, DType
from prunus._errors import FormatError
from prunus.llm.config import Config
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.lowrank import LowRank
from prunus.pruning.packed import FFN
from prunus.pruning.predictor import Predictor

if TYPE_CHECKING:
    from prunus.llm.weights import Weights

__all__ = ["Calibration", "Collector", "check_rank"]

_FORMAT: Final = "1"
_KEY: Final = "llm.calibration"
DECIDERS: Final = ("up", "gate")
ACTIVATIONS: Final = {"up": None, "gate": "silu"}
# Shares of units for which thresholds are kept; between them they are interpolated.
_GRID: Final = np.linspace(0, 1, 129)
_SAMPLE: Final = 4 << 20  # bytes of magnitudes of each kind that a layer's quantiles come from


class Rule(NamedTuple):
    """How a layer's units are judged once one side of them is known: live where the score is above ``tau``.

    Attributes
    ----------
    tau : float
        The threshold.
    weights : ndarray of float32
        Shape (units,): what a unit's known side is multiplied by. With ``guess``, the length of its row of
        the down-projection; else that times the other side's root mean square.
    other : str
        The side that is not known: "up" or "gate".
    guess : LowRank, optional
        What the other side is about, for each input.
    """

    tau: float
    weights: Array
    other: str
    guess: LowRank | None

    def scores(self, known: Array, x: Array | None) -> Array:
        """Return the scores (rows, units) for magnitudes of the known side, and the layer's inputs."""
        scores: Array = known * self.weights
        if self.guess is not None:
            assert x is not None
            with np.errstate(over="ignore", invalid="ignore"):
                scores *= np.sqrt(self.guess.power(x, ACTIVATIONS[self.other]))
        return scores


def check_rank(rank: Any, config: Config, tokens: int) -> int:
    """Return the rank of predictors that a text of so many tokens is to give; 0 is none.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or out of range.
    """
    if isinstance(rank, (bool, np.bool_)):
        raise TypeError("rank must be an integer, got a bool")
    try:
        found = operator.index(rank)
    except TypeError:
        raise TypeError(f"rank must be an integer, got {type(rank).__name__}") from None
    most = min(tokens, config.hidden_size, config.intermediate_size)
    if not 0 <= found <= most:
        raise ValueError(
            f"rank must be from 0 (no predictors) to {most} with {tokens} tokens, {config.hidden_size} "
            f"inputs and {config.intermediate_size} hidden units, got {found}"
        )
    return found


class Calibration:
    """What a text told of a model's hidden units.

    Attributes
    ----------
    sizes : tuple of int
        Layers, hidden units, and inputs of the model it belongs to.
    rank : int
        Of the predictors; 0 if there are none.
    """

    def __init__(self, sizes: tuple[int, int, int], arrays: dict[str, Array], rank: int) -> None:
        self.sizes, self._arrays, self.rank = sizes, arrays, rank

    def __repr__(self) -> str:
        layers, units, inputs = self.sizes
        guesses = f"predictors of rank {self.rank}" if self.rank else "no predictors"
        return (
            f"<prunus.llm.Calibration of {layers} layers of {units} hidden units and {inputs} inputs, "
            f"{guesses}>"
        )

    def check(self, config: Config) -> None:
        """Raise ValueError unless it belongs to a model of these sizes."""
        own = (config.num_hidden_layers, config.intermediate_size, config.hidden_size)
        if self.sizes != own:
            raise ValueError(
                f"the calibration is of a model of (layers, hidden units, inputs) {self.sizes}, this is {own}"
            )

    def rules(self, decide: str, keep: float) -> list[Rule]:
        """Return for each layer how its units are judged once one side is known.

        Parameters
        ----------
        decide : {"up", "gate"}
            The side that is computed first.
        keep : float
            Share of units that were above the threshold in the text, over all tokens.
        """
        other = DECIDERS[1 - DECIDERS.index(decide)]
        made = []
        for i in range(self.sizes[0]):
            levels = self._arrays[f"layers.{i}.{decide}.levels"]
            tau = float(np.interp(1 - keep, _GRID, levels))
            guess = self._low_rank(i, other).ready(ACTIVATIONS[other]) if self.rank else None
            made.append(Rule(tau, self._arrays[f"layers.{i}.{decide}.weights"], other, guess))
        return made

    def predictors(self, keep: float) -> list[Predictor]:
        """Return for each layer the predictor that keeps a share of its units before either side is known.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not self.rank:
            raise ValueError("the calibration has no predictors: calibrate with rank= (--rank)")
        made = []
        for i in range(self.sizes[0]):
            # What a unit moves the output by is its value times its row's length.
            lengths = np.maximum(self._arrays[f"layers.{i}.lengths"], np.finfo(np.float32).tiny)
            up, gate = self._low_rank(i, "up").over(1 / lengths), self._low_rank(i, "gate")
            made.append(Predictor(up, gate, keep=keep, activation="silu"))
        return made

    def cost(self, decide: str) -> tuple[int, int]:
        """Return operations and bytes that guesses take for one token, in all layers.

        Parameters
        ----------
        decide : {"up", "gate", "predictor"}
            What is computed before units are chosen: of one side the other is guessed, of none both.
        """
        if not self.rank:
            return 0, 0
        sides = DECIDERS if decide == "predictor" else (DECIDERS[1 - DECIDERS.index(decide)],)
        found = [self._low_rank(i, side) for i in range(self.sizes[0]) for side in sides]
        return sum(2 * (low.narrow.size + low.wide.size) for low in found), sum(low.nbytes for low in found)

    def _low_rank(self, layer: int, side: str) -> LowRank:
        return LowRank(*(self._arrays[f"layers.{layer}.{side}.{part}"] for part in LowRank._fields))

    # In files ------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; atomic."""
        from prunus.paged.save import save

        told = {_KEY: _FORMAT, "sizes": " ".join(map(str, self.sizes)), "rank": str(self.rank)}
        save(path, self._arrays, metadata=told)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        OSError
            If it cannot be read.
        FormatError
            If it is something else, or damaged.
        """
        from prunus.paged.array import PagedArray
        from prunus.paged.files import File, open_file

        file = open_file(path)
        if not isinstance(file, File) or file.metadata.get(_KEY) != _FORMAT:
            file.close()
            raise FormatError(f"{os.fspath(path)}: expected a calibration that `llm calibrate` wrote")
        with file:
            try:
                layers, units, inputs = map(int, file.metadata["sizes"].split())
                rank = int(file.metadata["rank"])
            except (KeyError, ValueError) as error:
                raise FormatError(f"{os.fspath(path)}: the calibration is damaged: {error!r}") from error
            found = {name: file[name] for name in file}
            arrays = {name: one.load() for name, one in found.items() if isinstance(one, PagedArray)}
        made = cls((layers, units, inputs), arrays, rank)
        made._require(os.fspath(path))
        return made

    def _require(self, path: str) -> None:
        """Raise FormatError unless all arrays are there in their shapes."""
        layers, units, inputs = self.sizes
        low = {"narrow": (self.rank, inputs), "wide": (units, self.rank)}
        each: dict[str, tuple[int, ...]] = {"lengths": (units,)}
        guesses = {f"{side}.{part}" for side in DECIDERS for part in low}
        for side in DECIDERS:
            each |= {f"{side}.weights": (units,), f"{side}.levels": (len(_GRID),)}
            if self.rank:
                each |= {f"{side}.{part}": shape for part, shape in low.items()}
                each |= {f"{side}.{part}": (units,) for part in ("offset", "spread")}
        for part, shape in each.items():
            known: tuple[DType, ...] = (BFLOAT16, F32) if part in guesses else (F32,)
            for name in (f"layers.{i}.{part}" for i in range(layers)):
                found = self._arrays.get(name)
                if found is None or found.shape != shape or found.dtype not in known:
                    what = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
                    raise FormatError(f"{path}: expected {known[0]} of shape {shape} as {name}, got {what}")


class Collector:
    """Looks on while a text passes through a model, and makes a calibration of what it saw.

    Parameters
    ----------
    weights : Weights
        The model.
    rank : int
        Of the predictors; 0 for none.
    seed : int
        Of the choice of tokens that quantiles and predictors come from.
    """

    def __init__(self, weights: Weights, rank: int = 0, seed: int = 0) -> None:
        config = weights.config
        self._layers: Sequence[FeedForward] = [one.ffn for one in weights.layers]
        self._sizes = (config.num_hidden_layers, config.intermediate_size, config.hidden_size)
        self._rank = rank
        count, units, inputs = self._sizes
        self._sums = np.zeros((count, 2, units))
        self._tokens = np.zeros(count, np.int64)
        room = max(_SAMPLE // (4 * units), 16)
        self._samples = [Reservoir(room, 2 * units + inputs, seed + i) for i in range(count)]
        # A fit wants a few times as many samples as there are inputs.
        wanted = 4 * inputs if rank else 0
        self._inputs = [Reservoir(wanted, inputs, seed + i) for i in range(count)]

    def watch(self, number: int, x: Array) -> None:
        """Take note of a layer's inputs (tokens, hidden_size)."""
        ffn = _in_memory(self._layers[number])
        gate, up = (np.empty((len(x), ffn.hidden), np.float32) for _ in range(2))
        engine = engines.active()
        assert ffn._gate is not None
        engine.dots(x, ffn._gate, gate, None, 1, None, "silu")
        engine.dots(x, ffn._up, up, None, 1, ffn._b_up, None)
        sizes = np.concatenate([np.abs(up), np.abs(gate)], axis=1)
        self._sums[number] += np.square(sizes, dtype=np.float64).sum(axis=0).reshape(2, -1)
        self._tokens[number] += len(x)
        self._samples[number].add(np.concatenate([sizes, x], axis=1))
        self._inputs[number].add(x)

    def finish(self, told: Callable[[], None] = lambda: None) -> Calibration:
        """Return the calibration; ``told`` is called once a layer.

        Raises
        ------
        ValueError
            If the text was too short for the predictors' rank.
        """
        arrays: dict[str, Array] = {}
        for i in range(self._sizes[0]):
            found = self._layer(i, _in_memory(self._layers[i]))
            arrays |= {f"layers.{i}.{name}": np.ascontiguousarray(a) for name, a in found.items()}
            told()
        return Calibration(self._sizes, arrays, self._rank)

    def _layer(self, i: int, ffn: FFN) -> dict[str, Array]:
        units = self._sizes[1]
        down = ffn._down.astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", down, down))
        mean = np.sqrt(self._sums[i] / max(int(self._tokens[i]), 1))
        found = {"lengths": lengths}
        fits = self._fits(i, ffn) if self._rank else None
        sizes, x = self._samples[i].rows[:, : 2 * units], self._samples[i].rows[:, 2 * units :]
        for at, side in enumerate(DECIDERS):
            other = DECIDERS[1 - at]
            weights = lengths if fits else lengths * mean[1 - at]
            rule = Rule(0.0, weights.astype(np.float32), other, fits[other] if fits else None)
            scores = rule.scores(sizes[:, at * units : (at + 1) * units], np.ascontiguousarray(x))
            levels = np.quantile(scores, _GRID) if scores.size else np.zeros(len(_GRID))
            levels[0] = 0.0  # what keeps all
            found |= {f"{side}.weights": rule.weights, f"{side}.levels": levels.astype(np.float32)}
            if fits:
                found |= {f"{side}.{part}": values for part, values in fits[side]._asdict().items()}
        return found

    def _fits(self, i: int, ffn: FFN) -> dict[str, LowRank]:
        """Return low-rank approximations of both sides."""
        x = self._inputs[i].rows
        up, gate = (w.astype(np.float32) for w in (ffn._up, ffn._gate) if w is not None)
        made = Predictor.fit(x, up, rank=self._rank, keep=1.0, w_gate=gate, b_up=ffn._b_up, activation="silu")
        assert made._gate is not None
        return {"up": made._up.stored(BFLOAT16), "gate": made._gate.stored(BFLOAT16)}


class Reservoir:
    """A uniform sample of rows (Vitter's algorithm R, 1985)."""

    def __init__(self, room: int, width: int, seed: int) -> None:
        self._rows = np.empty((room, width), np.float32)
        self._seen = 0
        self._random = np.random.default_rng(seed)

    @property
    def rows(self) -> Array:
        """What was kept, (rows, width)."""
        return self._rows[: min(self._seen, len(self._rows))]

    def add(self, rows: Array) -> None:
        """Show rows to it."""
        room = len(self._rows)
        for row in rows if room else ():
            at = self._seen if self._seen < room else int(self._random.integers(self._seen + 1))
            if at < room:
                self._rows[at] = row
            self._seen += 1


def _in_memory(ffn: FeedForward) -> FFN:
    if isinstance(ffn, FFN):
        return ffn
    found: FFN = ffn.load()  # type: ignore[attr-defined]
    return found
