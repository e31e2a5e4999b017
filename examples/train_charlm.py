"""Train a small character-level language model three ways, and see what sparsity costs and gives.

The text is what every Linux has: the documentation strings of Python's standard library (the default), or the
licences in /usr/share/common-licenses. The models are transformers that differ in their linear layers:

dense
    Linear layers as everywhere, ReLU in the feed-forward layers.
sparse
    The same number of layers, of block-sparse matrices from the first step on: only a fifth of their blocks is
    stored. Feed-forward layers are wider for it. Which blocks there are is learned (RigL: Evci et al. 2020): now
    and then the weakest are dropped, and those grow where the loss would gain most.
pruned
    The dense model with a penalty on live hidden units: which units are dead for a token is found while the
    layer runs, and what is dead is not multiplied, forward or backward.

All see the same batches, and are judged by the same text that none was trained on.

    python examples/train_charlm.py                     # on the CPU, under five minutes on two cores
    python examples/train_charlm.py --plot curves.png   # needs matplotlib
    python examples/train_charlm.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus as pr
import prunus.torch as pt

LICENCES = Path("/usr/share/common-licenses")
CHARACTERS = 128  # ASCII; the few others are left out
NEAR = 4


# The text ------------------------------------------------------------------------------------------------


def docstrings() -> str:
    """Return the documentation strings of Python's standard library, in the order of its files."""
    root = Path(sysconfig.get_path("stdlib"))
    apart = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    found = []
    for path in sorted(root.rglob("*.py")):
        if apart.intersection(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append(ast.get_docstring(node) or "")
    return "\n\n".join(filter(None, found))


def licences() -> str:
    """Return the licences that Debian and its descendants come with."""
    return "\n\n".join(path.read_text(errors="ignore") for path in sorted(LICENCES.iterdir()) if path.is_file())


class Text:
    """A text as numbers, cut into what is learned (nine tenths, in pieces from all over) and what judges."""

    def __init__(self, text: str, device: torch.device, pieces: int = 40) -> None:
        every = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8).long()
        parts = every.tensor_split(pieces)
        cuts = [int(0.9 * len(part)) for part in parts]
        self.learned = torch.cat([part[:cut] for part, cut in zip(parts, cuts, strict=True)]).to(device)
        self.held_out = torch.cat([part[cut:] for part, cut in zip(parts, cuts, strict=True)]).to(device)

    def batch(self, part: Tensor, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return texts (rows, length), and the character that follows each of theirs."""
        starts = torch.randint(len(part) - length - 1, (rows, 1), generator=generator)
        at = (starts + torch.arange(length + 1)).to(part.device)
        return part[at[:, :-1]], part[at[:, 1:]]


# The models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    layers: int
    width: int
    heads: int
    length: int
    hidden: int  # of a dense feed-forward layer
    wide: int  # of a block-sparse one
    density: float
    blocksize: int


class Layer(nn.Module):
    """Attention and a feed-forward layer, each after a norm and beside a way around (Vaswani et al. 2017)."""

    def __init__(self, kind: str, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        d = sizes.width
        self.heads = sizes.heads
        self.before_attention, self.before_ffn = nn.LayerNorm(d), nn.LayerNorm(d)

        def linear(inputs: int, outputs: int) -> nn.Module:
            if kind != "sparse":
                return nn.Linear(inputs, outputs)
            return pt.nn.BlockSparseLinear(
                inputs, outputs, blocksize=sizes.blocksize, density=sizes.density, generator=generator
            )

        self.qkv, self.out = linear(d, 3 * d), linear(d, d)
        if kind == "pruned":
            self.ffn: nn.Module = pt.nn.PrunedFFN(d, sizes.hidden, activation="relu", prune=pr.Threshold(0.0))
        else:
            hidden = sizes.wide if kind == "sparse" else sizes.hidden
            self.ffn = nn.Sequential(linear(d, hidden), nn.ReLU(), linear(hidden, d))

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes after, of the shape (rows, length, width) that it has before."""
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.ffn(self.before_ffn(x))


class Model(nn.Module):
    """From characters (rows, length) to scores of the next one (rows, length, CHARACTERS)."""

    def __init__(self, kind: str, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        # A table for each of the last characters: what stands side by side need not be found by attention.
        self.characters = nn.ModuleList(nn.Embedding(CHARACTERS, sizes.width) for _ in range(NEAR))
        self.places = nn.Embedding(sizes.length, sizes.width)
        self.layers = nn.ModuleList(Layer(kind, sizes, generator) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, CHARACTERS)
        for table in (*self.characters, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        near = (table(F.pad(x, (back, 0))[:, : x.shape[1]]) for back, table in enumerate(self.characters))
        x = sum(near, self.places.weight[: x.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
