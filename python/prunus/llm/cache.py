"""Keys and values of the tokens so far."""

from __future__ import annotations

from typing import Final

import numpy as np

from prunus._dtypes import Array
from prunus.llm.config import Config

__all__ = ["Cache"]

_FIRST: Final = 256


class Cache:
    """Keys and values of one text, in float32; memory grows with it, by doubling.

    Parameters
    ----------
    config : Config
        Of the model.
    room : int
        Tokens to make room for at once.
    """

    def __init__(self, config: Config, room: int = _FIRST) -> None:
        self._shape = (config.num_hidden_layers, 2, config.num_key_value_heads)
        self._head_dim, self._most = config.head_dim, config.max_position_embeddings
        self.length = 0
        self._values: Array = np.empty((*self._shape, 0, self._head_dim), np.float32)
        self._reserve(min(max(room, 1), self._most))

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._values.nbytes

    def extend(self, count: int) -> None:
        """Make room for so many more tokens, which :meth:`put` gives layer by layer.

        Raises
        ------
        ValueError
            If the model's context has no room for them.
        """
        if self.length + count > self._most:
            raise ValueError(
                f"the model's context has room for {self._most} tokens, and {self.length + count} are wanted"
            )
        if self.length + count > self._values.shape[3]:
            self._reserve(min(max(2 * self._values.shape[3], self.length + count), self._most))
        self.length += count

    def put(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Store a layer's keys and values (tokens, heads, head_dim) of the last tokens; return those of all.

        Returns
        -------
        keys, values : ndarray
            Shape (heads, length, head_dim); views, until more is put.
        """
        first = self.length - len(keys)
        here = self._values[layer]
        here[0, :, first : self.length] = keys.swapaxes(0, 1)
        here[1, :, first : self.length] = values.swapaxes(0, 1)
        return here[0, :, : self.length], here[1, :, : self.length]

    def _reserve(self, room: int) -> None:
        new = np.empty((*self._shape, room, self._head_dim), np.float32)
        new[..., : self.length, :] = self._values[..., : self.length, :]
        self._values = new
