"""Train a small character-level language model three ways, and see what sparsity costs and gives.

The text is what every Linux has: the documentation strings of Python's standard library (the default), or
the licences in /usr/share/common-licenses. The models are transformers that differ in their linear layers:

dense
    Linear layers as everywhere, ReLU in the feed-forward layers.
sparse
    Block-sparse matrices from the first step on: a fifth of their blocks is stored. Feed-forward layers are
    wider for it. Which blocks there are is learned (RigL: Evci et al. 2020): now and then the weakest are
    dropped, and those grow where the loss would gain most.
pruned
    The dense model with a penalty on live hidden units, the mean of their activations. Which units are dead
    for a character is found while a layer runs, and what is dead is not multiplied, forward or backward.

All see the same batches in the same order, and are judged by text that none was trained on.

    python examples/train_charlm.py                     # under five minutes on two cores
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
from torch import Tensor, nn
from torch.nn import functional

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
    files = (path for path in sorted(LICENCES.iterdir()) if path.is_file())
    return "\n\n".join(path.read_text(errors="ignore") for path in files)


class Text:
    """A text as numbers, cut into what is learned (nine tenths of each of 40 pieces) and what judges."""

    def __init__(self, text: str, device: torch.device, pieces: int = 40) -> None:
        every = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8).long()
        parts = every.tensor_split(pieces)
        cuts = [int(0.9 * len(part)) for part in parts]
        self.learned = torch.cat([part[:cut] for part, cut in zip(parts, cuts, strict=True)]).to(device)
        self.held_out = torch.cat([part[cut:] for part, cut in zip(parts, cuts, strict=True)]).to(device)

    @staticmethod
    def batch(part: Tensor, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
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
        near = (
            table(functional.pad(x, (back, 0))[:, : x.shape[1]]) for back, table in enumerate(self.characters)
        )
        x = sum(near, self.places.weight[: x.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


# Training ------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What became of a model."""

    kind: str
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # on the text held out, nats per character
    live: list[float] = field(default_factory=list)  # share of hidden units that are not 0
    flops: float = 0.0  # of the linear layers of all steps, forward and backward
    weights: int = 0  # of the linear layers
    seconds: float = 0.0  # of the steps alone
    characters: int = 0

    @property
    def loss(self) -> float:
        """At the end."""
        return self.losses[-1]

    @property
    def rate(self) -> float:
        """Characters a second."""
        return self.characters / self.seconds


@dataclass(frozen=True)
class Settings:
    """Of the training."""

    steps: int
    rows: int
    rate: float
    penalty: float
    every: int  # steps between two looks at the text held out
    dtype: torch.dtype
    seed: int


@torch.no_grad()
def judge(model: Model, text: Text, sizes: Sizes, settings: Settings) -> tuple[float, float]:
    """Return the loss on the text held out, and the share of live hidden units there."""
    generator = torch.Generator().manual_seed(1)  # the same every time, for every model
    total, parts, live = 0.0, 8, Live(model)
    with live:
        for _ in range(parts):
            x, y = text.batch(text.held_out, 32, sizes.length, generator)
            with autocast(settings, x.device):
                scores = model(x)
            total += float(functional.cross_entropy(scores.float().flatten(0, 1), y.flatten()))
    return total / parts, live.fraction


class Live:
    """Counts hidden units that are not 0, in whatever kind of layer."""

    def __init__(self, model: Model) -> None:
        self.layers = [layer.ffn for layer in model.layers]
        self.shares: list[Tensor] = []

    def __enter__(self) -> Live:
        watched = [layer[1] if isinstance(layer, nn.Sequential) else layer for layer in self.layers]
        self.hooks = [layer.register_forward_hook(self.note) for layer in watched]
        return self

    def note(self, layer: nn.Module, _: object, output: Tensor) -> None:
        """Count one call."""
        self.shares.append((output > 0).float().mean() if isinstance(layer, nn.ReLU) else layer.live_fraction)

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    @property
    def fraction(self) -> float:
        """The mean of all calls."""
        return float(torch.stack(self.shares).mean())


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """Return the context that products run in."""
    half = settings.dtype != torch.float32
    return torch.autocast(device.type, settings.dtype if half else None, enabled=half)


def multiplied(model: Model) -> tuple[float, int]:
    """Return multiply-adds a character of the layers' linear parts, forward, and their weights."""
    products, weights = 0.0, 0
    for layer in model.layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                products, weights = products + part.weight.numel(), weights + part.weight.numel()
            elif isinstance(part, pt.nn.BlockSparseLinear):
                products, weights = products + part.values.numel(), weights + part.values.numel()
            elif isinstance(part, pt.nn.PrunedFFN):
                # All units are computed, to be judged; live ones go on.
                products += part.w_up.numel() + float(part.live_fraction) * part.w_down.numel()
                weights += part.w_up.numel() + part.w_down.numel()
    return products, weights


def backward_of(model: Model, forward: float) -> float:
    """Return multiply-adds of the backward pass: two products for each, of which dead units have none."""
    total = 2 * forward
    for layer in model.layers:
        if isinstance(layer.ffn, pt.nn.PrunedFFN):
            # What judged dead units has no gradient.
            total -= 2 * (1 - float(layer.ffn.live_fraction)) * layer.ffn.w_up.numel()
    return total


def train(kind: str, text: Text, sizes: Sizes, settings: Settings) -> Run:
    """Train one model, telling how it goes."""
    torch.manual_seed(settings.seed)
    device = text.learned.device
    generator = torch.Generator().manual_seed(settings.seed)
    model = Model(kind, sizes, generator).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, settings.steps))
    learner = None
    if kind == "sparse":
        learner = pt.learning.RigL(
            model, optimizer, every=max(settings.steps // 20, 1), end=settings.steps * 3 // 4
        )
    run = Run(kind)
    batches = torch.Generator().manual_seed(settings.seed)
    clock = time.perf_counter()
    for step in range(1, settings.steps + 1):
        x, y = text.batch(text.learned, settings.rows, sizes.length, batches)
        with autocast(settings, device):
            scores = model(x)
        loss = functional.cross_entropy(scores.float().flatten(0, 1), y.flatten())
        if kind == "pruned":
            loss = loss + settings.penalty * pt.live_penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if learner is not None:
            learner.step()
        products, run.weights = multiplied(model)
        run.flops += 2 * (products + backward_of(model, products)) * x.numel()
        run.characters += x.numel()
        if step % settings.every == 0 or step == settings.steps:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            run.seconds += time.perf_counter() - clock
            loss_out, live = judge(model, text, sizes, settings)
            run.steps.append(step)
            run.losses.append(loss_out)
            run.live.append(live)
            print(
                f"{kind:7} step {step:4}  loss {loss_out:.4f}  live {live:6.1%}  {run.rate:7,.0f} chars/s",
                file=sys.stderr,
            )
            clock = time.perf_counter()
    return run


def _schedule(step: int, steps: int) -> float:
    """Return what the rate is multiplied by: up in 40 steps, down along a cosine."""
    return min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


# What is told --------------------------------------------------------------------------------------------


def table(runs: list[Run]) -> str:
    """Return what became of the models, side by side."""
    first = runs[0]
    lines = [
        "| model | loss | beside dense | FLOPs in linears | weights | live hidden units | characters/s |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for run in runs:
        lines.append(
            f"| {run.kind} | {run.loss:.4f} | {run.loss / first.loss - 1:+.1%} "
            f"| {run.flops / first.flops:.0%} | {run.weights:,} | {run.live[-1]:.1%} | {run.rate:,.0f} |"
        )
    return "\n".join(lines)


def plot(path: Path, runs: list[Run]) -> None:
    """Draw loss and live share over steps, and characters a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    colours = {"dense": "#4c78a8", "sparse": "#7b2d8b", "pruned": "#e08a1e"}
    figure, (losses, live, rates) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for run in runs:
        losses.plot(run.steps, run.losses, label=run.kind, color=colours[run.kind])
        live.plot(run.steps, run.live, label=run.kind, color=colours[run.kind])
    rates.bar([run.kind for run in runs], [run.rate for run in runs], color=[colours[r.kind] for r in runs])
    losses.set(title="loss on text held out", xlabel="step", ylabel="nats per character")
    live.set(title="live hidden units", xlabel="step", ylabel="share", ylim=(0, None))
    rates.set(title="characters a second, in training")
    losses.legend(frameon=False)
    for axes in (losses, live, rates):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--rows", type=int, default=16, help="texts in a batch")
    parser.add_argument("--length", type=int, default=64, help="characters in a text")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--wide", type=int, default=1024, help="hidden units of a block-sparse layer")
    parser.add_argument("--density", type=float, default=0.2, help="share of blocks that are stored")
    parser.add_argument("--blocksize", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning, at its highest")
    parser.add_argument("--penalty", type=float, default=0.1, help="weight of the mean activation")
    parser.add_argument("--models", nargs="+", default=["dense", "sparse", "pruned"])
    parser.add_argument("--text", choices=["docstrings", "licences"], default="docstrings")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of products")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    text = Text(docstrings() if options.text == "docstrings" else licences(), torch.device(options.device))
    sizes = Sizes(
        layers=options.layers,
        width=options.width,
        heads=4,
        length=options.length,
        hidden=4 * options.width,
        wide=options.wide,
        density=options.density,
        blocksize=options.blocksize,
    )
    settings = Settings(
        steps=options.steps,
        rows=options.rows,
        rate=options.rate,
        penalty=options.penalty,
        every=max(options.steps // 20, 1),
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
    )
    runs = [train(kind, text, sizes, settings) for kind in options.models]
    print(table(runs))
    if options.plot is not None:
        plot(options.plot, runs)


if __name__ == "__main__":
    main()
