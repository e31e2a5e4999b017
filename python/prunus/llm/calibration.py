"""``llm calibrate``: from a text to what each hidden unit weighs, thresholds, and predictors.

Of a hidden unit ``silu(g) * u`` whose row of the down-projection is d, ``|silu(g)| |u| ||d||`` is what
leaving it out costs. Where the up-projection decides, |u| is known and the rest is not yet: the unit's weight is
``||d||`` times the root of the mean square of ``silu(g)`` over the text, given u's token; where the gate
decides, likewise with u. Thresholds are quantiles of weighted magnitudes, one set a layer, as those of CATS
(Lee et al., 2024, arXiv:2404.08763) are of a gate's. Predictors are :class:`prunus.Predictor`, their scores
weighted by ``||d||`` too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from prunus import engines
from prunus._dtypes import Array
from prunus._errors import FormatError
from prunus.llm.config import Config
from prunus.pruning.ffn import FFN, FeedForward
from prunus.pruning.lowrank import LowRank
from prunus.pruning.predictor import Predictor

if TYPE_CHECKING:
    from prunus.llm.weights import Weights

__all__ = ["Calibration", "Collector"]

_FORMAT: Final = "1"
_KEY: Final = "llm.calibration"
DECIDERS: Final = ("up", "gate")
# Shares of units for which thresholds are kept; between them they are interpolated.
_GRID: Final = np.linspace(0, 1, 129)
_SAMPLE: Final = 4 << 20  # bytes of magnitudes of each kind that a layer's quantiles come from


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

    def check(self, config: Config) -> None:
        """Raise ValueError unless it belongs to a model of these sizes."""
        own = (config.num_hidden_layers, config.intermediate_size, config.hidden_size)
        if self.sizes != own:
            raise ValueError(
                f"the calibration is of a model of (layers, hidden units, inputs) {self.sizes}, this is {own}"
            )

    def thresholds(self, decide: str, keep: float) -> list[tuple[float, Array]]:
        """Return for each layer the threshold that keeps a share of its units, and what units weigh.

        Parameters
        ----------
        decide : {"up", "gate"}
            Which matrix decides.
        keep : float
            Share of units that were above it in the text, over all tokens.
        """
        found = []
        for i in range(self.sizes[0]):
            levels = self._arrays[f"layers.{i}.{decide}.levels"]
            tau = float(np.interp(1 - keep, _GRID, levels))
            found.append((tau, self._arrays[f"layers.{i}.{decide}.weights"]))
        return found

    def predictors(self, keep: float) -> list[Predictor]:
        """Return for each layer the predictor that keeps a share of its units.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not self.rank:
            raise ValueError("the calibration has no predictors: calibrate with rank= (--rank)")
        made = []
        for i in range(self.sizes[0]):
            parts = (
                LowRank(*(self._arrays[f"layers.{i}.predictor.{side}.{part}"] for part in LowRank._fields))
                for side in ("up", "gate")
            )
            made.append(Predictor(*parts, keep=keep, activation="silu"))
        return made

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
        low = {
            "narrow": (self.rank, inputs),
            "wide": (units, self.rank),
            "offset": (units,),
            "spread": (units,),
        }
        expected: dict[str, tuple[int, ...]] = {}
        for i in range(layers):
            for side in DECIDERS:
                expected[f"layers.{i}.{side}.weights"] = (units,)
                expected[f"layers.{i}.{side}.levels"] = (len(_GRID),)
                if self.rank:
                    for part, shape in low.items():
                        expected[f"layers.{i}.predictor.{side}.{part}"] = shape
        for name, shape in expected.items():
            found = self._arrays.get(name)
            if found is None or found.shape != shape or found.dtype != np.float32:
                what = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
                raise FormatError(f"{path}: expected float32 of shape {shape} as {name}, got {what}")


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
        self._sizes_kept = [Reservoir(room, 2 * units, seed + i) for i in range(count)]
        # A fit wants a few times as many samples as there are inputs.
        wanted = 4 * inputs if rank else 0
        self._inputs_kept = [Reservoir(wanted, inputs, seed + i) for i in range(count)]

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
        self._sizes_kept[number].add(sizes)
        self._inputs_kept[number].add(x)

    def finish(self, told: Callable[[], None] = lambda: None) -> Calibration:
        """Return the calibration; ``told`` is called once a layer.

        Raises
        ------
        ValueError
            If the text was too short for the predictors' rank.
        """
        count, units, _ = self._sizes
        arrays: dict[str, Array] = {}
        for i in range(count):
            ffn = _in_memory(self._layers[i])
            lengths = np.sqrt(np.einsum("ij,ij->i", down := ffn._down.astype(np.float32), down))
            mean = np.sqrt(self._sums[i] / max(int(self._tokens[i]), 1))
            kept = self._sizes_kept[i].rows
            for at, side in enumerate(DECIDERS):
                weights = (lengths * mean[1 - at]).astype(np.float32)
                scores = kept[:, at * units : (at + 1) * units] * weights
                levels = np.quantile(scores, _GRID) if scores.size else np.zeros(len(_GRID))
                levels[0] = 0.0  # what keeps all
                arrays[f"layers.{i}.{side}.weights"] = weights
                arrays[f"layers.{i}.{side}.levels"] = levels.astype(np.float32)
            if self._rank:
                arrays |= self._predictor(i, ffn, lengths)
            told()
        return Calibration(self._sizes, arrays, self._rank)

    def _predictor(self, i: int, ffn: FFN, lengths: Array) -> dict[str, Array]:
        x = self._inputs_kept[i].rows
        up, gate = (w.astype(np.float32) for w in (ffn._up, ffn._gate) if w is not None)
        made = Predictor.fit(x, up, rank=self._rank, keep=1.0, w_gate=gate, b_up=ffn._b_up, activation="silu")
        # What a unit moves the output by is its value times its row's length.
        weighted = made._up.over(1 / np.maximum(lengths, np.finfo(np.float32).tiny))
        assert made._gate is not None
        sides: dict[str, Any] = {"up": weighted, "gate": made._gate}
        return {
            f"layers.{i}.predictor.{side}.{part}": np.ascontiguousarray(values, np.float32)
            for side, found in sides.items()
            for part, values in found._asdict().items()
        }


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
