"""A pass through the layers: what tokens say of the one that follows them.

The layers are those of Llama (Touvron et al., 2023, arXiv:2302.13971): root-mean-square norms (Zhang and
Sennrich, 2019, arXiv:1910.07467), rotary positions, attention whose heads of queries share heads of keys
(Ainslie et al., 2023, arXiv:2305.13245), and gated feed-forward layers with SiLU (Shazeer, 2020,
arXiv:2002.05202). Products are those of :func:`prunus.linear`, :func:`prunus.attention` and
:class:`prunus.FFN`; norms and rotations are compiled beside them. Activations are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from prunus import _core, engines
from prunus._dtypes import Array
from prunus._trace import is_traced
from prunus.llm.ahead import Ahead
from prunus.llm.cache import Cache
from prunus.llm.config import Config
from prunus.llm.weights import Layer, Weights
from prunus.pruning.attention import attention
from prunus.pruning.linear import linear

__all__ = ["Part", "Positions", "forward", "logits", "rms_norm"]

_BLOCK: Final = 64  # keys in a block, as in prunus.attention; without a mask it says nothing

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
        # Replaced whole: an interrupt, or another thread, finds both sides of one length.
        self._sides = (np.empty((0, len(self._turns)), np.float32),) * 2

    def of(self, first: int, count: int) -> tuple[Array, Array]:
        """Return cosines and sines of some positions, (count, head_dim / 2) each."""
        cos, sin = self._sides
        if first + count > len(cos):
            angles = np.arange(max(first + count, 2 * len(cos)))[:, None] * self._turns
            cos, sin = ((side(angles) * self._scale).astype(np.float32) for side in (np.cos, np.sin))
            self._sides = cos, sin
        return cos[first : first + count], sin[first : first + count]


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    """Return rows (n, d) over the root of their mean squares, times ``scale``."""
    y = np.empty(x.shape, np.float32)
    _core.rms_norm(x, scale, epsilon, y)
    return y


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
    qkv = _product(h, layer.qkv, layer.qkv_bias).reshape(len(h), queries + 2 * keys, config.head_dim)
    _core.rotate(qkv[:, : queries + keys], cos, sin)
    mixed, first = [], 0
    for part in parts:
        rows = qkv[first : first + len(part.tokens)]
        k, v = part.cache.put(number, rows[:, queries : queries + keys], rows[:, queries + keys :])
        y = _attention(rows[:, :queries].swapaxes(0, 1), k, v)
        mixed.append(y.swapaxes(0, 1).reshape(len(rows), queries * config.head_dim))
        first += len(rows)
    ahead.reach(3 * number + 1)
    return _product(mixed[0] if len(mixed) == 1 else np.concatenate(mixed), layer.out, layer.out_bias)


def _product(x: Array, w: Any, bias: Array | None) -> Array:
    """Return :func:`prunus.linear`; where nobody traces without its checks, a good part of a token's time."""
    if not isinstance(w, np.ndarray) or is_traced():
        found: Array = linear(x, w, bias)
        return found
    y = np.empty((len(x), len(w)), np.float32)
    engines.active().dots(x, w, y, bias=bias)
    return y


def _attention(q: Array, k: Array, v: Array) -> Array:
    """Return :func:`prunus.attention` of queries with all keys before them, likewise."""
    if is_traced():
        found: Array = attention(q, k, v, causal=True)
        return found
    y = np.empty(q.shape, np.float32)
    engines.active().attention(q, k, v, y, None, 1 / math.sqrt(q.shape[-1]), True, _BLOCK)
    return y


def logits(weights: Weights, x: Array) -> Array:
    """Return the logits (tokens, vocab_size) for the last layer's values."""
    return _product(rms_norm(x, weights.norm, weights.config.rms_norm_eps), weights.output, None)
