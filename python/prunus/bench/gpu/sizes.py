"""Sizes of the comparison: those that the figures are of, and tiny ones that an interpreter can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

__all__ = ["FULL", "SIZES", "TINY", "Attention", "Experts", "Sizes", "quick"]


class Experts(NamedTuple):
    """A mixture: how many experts, their inputs and hidden units."""

    number: int
    features: int
    hidden: int


class Attention(NamedTuple):
    """Heads, those of keys and values, and features of each."""

    heads: int
    groups: int
    features: int


_DECODING: Final = Attention(32, 8, 128)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is computed.

    Attributes
    ----------
    products : tuple of int
        Heights and widths of W.
    blocks, columns, densities : tuple
        Of W and x.
    crossing : tuple of float
        Densities besides, at which only prunus runs, to find where the dense product becomes faster.
    gemm : int
        Size of the dense product that gives the ceiling.
    copied : int
        Bytes that are copied for the other ceiling.
    hidden, features : int
        Of feed-forward layers.
    rank : int
        Of their predictor.
    batches : tuple of int
        Rows of theirs, besides one.
    experts : tuple of Experts
        Mixtures.
    tokens : int
        Rows of a mixture.
    attention : tuple of Attention
        Heads, where there are as many queries as keys.
    decoding : Attention
        Heads, where there is one query.
    length, keys, block : int
        Tokens of attention, keys of decoding, and positions in a block.
    little : int
        Size of the product whose launch is timed.
    """

    products: tuple[int, ...] = (4096, 8192)
    blocks: tuple[int, ...] = (32, 64, 128)
    columns: tuple[int, ...] = (16, 512, 4096)
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    crossing: tuple[float, ...] = (0.6, 0.7, 0.9)
    gemm: int = 8192
    copied: int = 4 << 30
    hidden: int = 11008
    features: int = 4096
    rank: int = 128
    batches: tuple[int, ...] = (16, 256)
    experts: tuple[Experts, ...] = (Experts(8, 4096, 14336), Experts(64, 2048, 1408))
    tokens: int = 4096
    attention: tuple[Attention, ...] = (Attention(32, 32, 64), Attention(8, 8, 128))
    decoding: Attention = _DECODING
    length: int = 8192
    keys: int = 32768
    block: int = 128
    little: int = 256


FULL: Final = Sizes()

TINY: Final = Sizes(
    products=(64,),
    blocks=(32,),
    columns=(16,),
    densities=(0.5,),
    crossing=(0.9,),
    gemm=64,
    copied=1 << 12,
    hidden=48,
    features=32,
    rank=4,
    batches=(3,),
    experts=(Experts(4, 32, 24),),
    tokens=8,
    attention=(Attention(2, 2, 16),),
    decoding=Attention(2, 1, 16),
    length=64,
    keys=64,
    block=16,
    little=32,
)

#: By the names that the command line knows.
SIZES: Final = {"full": FULL, "tiny": TINY}


def quick(sizes: Sizes) -> Sizes:
    """Return fewer cases of the same kinds."""
    return replace(
        sizes,
        products=sizes.products[:1],
        blocks=sizes.blocks[-2:],
        columns=sizes.columns[::2],
        densities=sizes.densities[1::2] or sizes.densities,
        crossing=sizes.crossing[:1],
        batches=sizes.batches[:1],
        experts=sizes.experts[:1],
        attention=sizes.attention[:1],
    )
