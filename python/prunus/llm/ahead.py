"""Reading ahead: while one table of weights is multiplied, those after it are on their way.

The order in which a token needs tables is known, and it is the order of the file. Each table's stream is
begun as soon as those before it take no more than the window; after the last table come those of the next
token. What cannot be known yet is left to the layer: which hidden units will be live.
"""

from __future__ import annotations

from typing import Final

from prunus.llm.weights import Weights
from prunus.paged.layers import PagedFFN
from prunus.paged.tables import Table

__all__ = ["Ahead"]

# The share of the budget that may be under way. The pager gives streams half of it: what an operation begins
# only when it runs, such as a layer's bundles, must find room beside those that wait for theirs.
_SHARE: Final = 4
_MOST: Final = 24 << 20
# What a stream that nobody reads yet has in memory at most.
_STREAM: Final = 12 << 20


class Ahead:
    """Begins the streams of tables before they are needed.

    Parameters
    ----------
    weights : Weights
        Of the model; those in memory need nothing.
    live : float
        Share of hidden units that will be live: where it is small, bundles are not read in order.
    """

    def __init__(self, weights: Weights, live: float = 1.0) -> None:
        self._steps: list[list[Table]] = []  # for each operation the tables that it streams, in order
        for layer in weights.layers:
            ffn = layer.ffn
            streamed = ffn.streamed(live) if isinstance(ffn, PagedFFN) else []
            self._steps += [_tables(layer.qkv), _tables(layer.out), streamed]
        self._steps.append(_tables(weights.output))
        # What was begun here and may still wait: other generations begin the same tables.
        self._begun: dict[Table, int] = {}
        on_disk = [table for step in self._steps for table in step]
        self._window = min(int(on_disk[0].store.pager.budget) // _SHARE, _MOST) if on_disk else 0

    def reach(self, at: int) -> None:
        """Begin what follows the operation that is about to run: three for each layer, and the output."""
        if not self._window:
            return
        room, count = self._window, len(self._steps)
        for step in range(at, at + count):
            for table in self._steps[step % count]:
                room -= min(len(table) * table.pitch, self._window, _STREAM)
                if room < 0:
                    return
                begun = table.begin()
                if begun is not None:  # what was begun before has been taken
                    self._begun[table] = begun

    def stop(self) -> None:
        """Leave what was begun here and nobody reads yet."""
        while self._begun:
            table, begun = self._begun.popitem()
            table.forget(begun)


def _tables(matrix: object) -> list[Table]:
    return [matrix] if isinstance(matrix, Table) else []
