"""A pass through the layers: what tokens say of the one that follows them.

The layers are those of Llama (Touvron et al., 2023, arXiv:2302.13971): root-mean-square norms (Zhang and
Sennrich, 2019, arXiv:1910.07467), rotary positions, attention whose heads of queries share heads of keys
(Ainslie et al., 2023, arXiv:2305.13245), and gated feed-forward layers with SiLU (Shazeer, 2020,
arXiv:2002.05202). All arithmetic is that of :func:`prunus.linear`, :func:`prunus.attention` and
:class:`prunus.FFN`; activations are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prunus._dtypes import Array
from prunus.llm.ahead import Ahead
from prunus.llm.cache import Cache
from prunus.llm.config import Config
from prunus.llm.weights import Layer, Weights
from prunus.pruning.attention import attention
from prunus.pruning.linear import linear

__all__ = ["Part", "Positions", "forward", "logits", "rms_norm"]

# Told the number of a layer and its feed-forward input: calibration looks on.
Watch = Callable[[int, Array], None]


class Part(NamedTuple):
    """New tokens of one text, and the cache of those before them."""

    cache: Cache
    tokens: Array


class Positions:
    """Sines and cosines of positions, computed as far as texts reach.

    Parameters
    ----------
    config : Config
        Of the model.
    """

    def __init__(self, config: Config) -> None:
        self._turns = config.rope.frequencies(config.head_dim)
        self._scale = config.rope.scale
        self._cos = self._sin = np.empty((0, len(self._turns)), np.float32)

    def of(self, first: int, count: int) -> tuple[Array, Array]:
        """Return cosines and sines of some positions, (count, head_dim / 2) each."""
        if first + count > len(self._cos):
            angles = np.arange(max(first + count, 2 * len(self._cos)))[:, None] * self._turns
            self._cos = (np.cos(angles) * self._scale).astype(np.float32)
            self._sin = (np.sin(angles) * self._scale).astype(np.float32)
        return self._cos[first : first + count], self._sin[first : first + count]


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    """Return rows (n, d) over the root of their mean squares, times ``scale``."""
    # One product for each row: its result does not depend on those beside it.
    squares = np.matmul(x[:, None], x[:, :, None])[:, 0, 0]
    root: Any
    if len(squares) == 1:  # numbers take a tenth of an array's time, and round as it does
        root = np.float32(math.sqrt(squares[0] / np.float32(x.shape[1]) + np.float32(epsilon)))
    else:
        squares /= x.shape[1]
        squares += np.float32(epsilon)
        root = np.sqrt(squares, out=squares)[:, None]
    y: Array = x / root
    y *= scale
    return y


def rotate(heads: Array, cos: Array, sin: Array) -> None:
    """Turn each head's values (n, heads, head_dim) by their positions, in place: first halves with second.

    Parameters
    ----------
    heads : ndarray
        What is turned.
    cos, sin : ndarray
        Shape (n, head_dim / 2) and (n, 2, head_dim / 2): each position's cosines, and its negated sines
        before its sines.
    """
    n, count, size = heads.shape
    halves = heads.reshape(n, count, 2, size // 2)  # a view: the last axis is contiguous
    turned = halves[:, :, ::-1] * sin[:, None]
    halves *= cos[:, None, None]
    halves += turned


def forward(
    weights: Weights,
    positions: Positions,
    parts: Sequence[Part],
    policies: Sequence[Any] | None = None,
    watch: Watch | None = None,
    ahead: Ahead | None = None,
) -> Array:
    """Return the last layer's values of new tokens, before the norm that the output matrix wants.

    Parameters
    ----------
    weights : Weights
        The model.
    positions : Positions
        Of the model.
    parts : sequence of Part
        New tokens of one text or several: they share each reading of the weights. Their keys and values are
        added to the caches.
    policies : sequence, optional
        For each layer what prunes its feed-forward layer, or None.
    watch : callable, optional
        Told each layer's number and feed-forward input (tokens, hidden_size).
    ahead : Ahead, optional
        Told how far the pass has come, so that what follows is read.

    Returns
    -------
    ndarray of float32
        Shape (tokens of all parts, hidden_size).

    Raises
    ------
    ValueError
        If a token is unknown, or the context has no room for more. No cache has changed then.
    """
    config = weights.config
    tokens = np.concatenate([part.tokens for part in parts]).astype(np.int64)
    strange = (tokens < 0) | (tokens >= config.vocab_size)
    if strange.any():
        raise ValueError(f"tokens must be from 0 to {config.vocab_size - 1}, got {tokens[strange][0]}")
    x = weights.embed(tokens)
    before = [part.cache.length for part in parts]
    own = Ahead(weights) if ahead is None else None
    ahead = own or ahead
    assert ahead is not None
    try:
        for part in parts:
            part.cache.extend(len(part.tokens))
        turns = [positions.of(first, len(part.tokens)) for part, first in zip(parts, before, strict=True)]
        cos, sin = (np.concatenate(side) if len(side) > 1 else side[0] for side in zip(*turns, strict=True))
        sin = np.stack([-sin, sin], axis=1)  # once for all layers
        for number, layer in enumerate(weights.layers):
            ahead.reach(3 * number)
            h = rms_norm(x, layer.attention_norm, config.rms_norm_eps)
            x += _attend(config, number, layer, h, parts, cos, sin, ahead)
            h = rms_norm(x, layer.ffn_norm, config.rms_norm_eps)
            if watch is not None:
                watch(number, h)
            ahead.reach(3 * number + 2)
            x += layer.ffn(h, "silu", None if policies is None else policies[number])
        ahead.reach(3 * len(weights.layers))
    except BaseException:  # Ctrl-C too: a cache holds whole tokens or none of them
        for part, length in zip(parts, before, strict=True):
            part.cache.length = length
        raise
    finally:
        if own is not None:
            own.stop()
    return x


def _attend(
    config: Config,
    number: int,
    layer: Layer,
    h: Array,
    parts: Sequence[Part],
    cos: Array,
    sin: Array,
    ahead: Ahead,
) -> Array:
    """Return what attention adds to the tokens."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    qkv = linear(h, layer.qkv, layer.qkv_bias).reshape(len(h), queries + 2 * keys, config.head_dim)
    rotate(qkv[:, : queries + keys], cos, sin)
    mixed = np.empty((len(h), queries, config.head_dim), np.float32)
    first = 0
    for part in parts:
        rows = qkv[first : first + len(part.tokens)]
        k, v = part.cache.put(number, rows[:, queries : queries + keys], rows[:, queries + keys :])
        y = attention(rows[:, :queries].swapaxes(0, 1), k, v, causal=True)
        mixed[first : first + len(rows)] = y.swapaxes(0, 1)
        first += len(rows)
    ahead.reach(3 * number + 1)
    found: Array = linear(mixed.reshape(len(h), -1), layer.out, layer.out_bias)
    return found


def logits(weights: Weights, x: Array) -> Array:
    """Return the logits (tokens, vocab_size) for the last layer's values."""
    found: Array = linear(rms_norm(x, weights.norm, weights.config.rms_norm_eps), weights.output)
    return found
