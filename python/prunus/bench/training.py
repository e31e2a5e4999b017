"""``python -m prunus bench training``: a block-sparse layer beside ``torch.nn.Linear``, forward and backward.

Both in one process, in interleaved rounds, on random values. Results and gradients are checked against the
dense layer with the same weights, in a wider type, before anything is timed. Weights are taken as a training
step finds them, changed since the last one: what they need of packing is in the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import prunus.torch as pt
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.machine import cpu, pinned
from prunus.bench.peers import WrongResultError
from prunus.bench.timing import interleave

__all__ = ["Case", "Race", "measure", "report"]

# Relative to the largest value: sums in float32 of results rounded to 8 bits of mantissa, or not.
_NEAR = {"float32": 1e-4, "bfloat16": 2e-2}
_SETTLE = 0.002  # torch's threads look for work that long after a call
# bfloat16 where torch has no instructions for it takes many seconds: fewer rounds.
_SLOW, _FEW = 2.0, 2
# How many times as fast as dense it is to be, by device, dtype and density, at blocks of 32.
_WANTED = {
    ("cpu", "float32", 0.1): 5.0,
    ("cpu", "float32", 0.3): 2.0,
    ("cpu", "bfloat16", 0.1): 4.0,
    ("cuda", "bfloat16", 0.1): 3.0,
}
_OPEN = (
    "open: asked of a CPU with AMX. Without it torch's bfloat16 can be far slower than its float32, and how\n"
    "many times faster than that a layer is says little."
)


@dataclass(frozen=True, slots=True)
class Case:
    """One layer.

    Attributes
    ----------
    size, tokens, block : int
        Features in and out, rows of the input, rows and columns of a block.
    density : float
        Share of stored blocks.
    dtype, device : str
        Of weights and inputs.
    """

    size: int
    tokens: int
    block: int
    density: float
    dtype: str
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Race:
    """A layer beside its dense peer: medians of seconds, and bytes.

    Attributes
    ----------
    case : Case
    threads : int
    forward, both : float
        Seconds of the block-sparse layer: the forward pass, and forward with backward.
    dense_forward, dense_both : float
        The same of ``torch.nn.Linear``.
    nbytes, dense_nbytes : int
        Weights, their gradients and Adam's states, with patterns and biases.
    error : float
        The largest difference from the dense reference, relative to its largest value.
    """

    case: Case
    threads: int
    forward: float
    both: float
    dense_forward: float
    dense_both: float
    nbytes: int
    dense_nbytes: int
    error: float

    @property
    def faster(self) -> float:
        """How many times faster than the dense layer, forward and backward."""
        return self.dense_both / self.both

    @property
    def wanted(self) -> float | None:
        """What is asked for, or None."""
        case = self.case
        return (
            _WANTED.get((case.device.split(":")[0], case.dtype, case.density)) if case.block == 32 else None
        )

    @property
    def verdict(self) -> str:
        """What is asked for, and "yes" or "NO"; or "open", if of CPUs with AMX, on one that has none."""
        if self.wanted is None:
            return ""
        if self.case.device == "cpu" and self.case.dtype == "bfloat16" and "amx" not in cpu().features:
            return f"{self.wanted:g} open"
        return f"{self.wanted:g} " + ("yes" if self.faster >= self.wanted else "NO")


def measure(cases: Sequence[Case], threads: int, rounds: int) -> list[Race]:
    """Measure layers, one after the other.

    Raises
    ------
    WrongResultError
        If a result or a gradient is not the dense layer's.
    """
    races = []
    with pinned(threads), Progress(len(cases), "layers") as bar:
        for case in cases:
            races.append(_race(case, threads, rounds))
            bar.step()
    return races


def _race(case: Case, threads: int, rounds: int) -> Race:
    generator = torch.Generator().manual_seed(case.size + case.tokens)
    dtype = getattr(torch, case.dtype)
    dense = torch.nn.Linear(case.size, case.size, dtype=dtype)
    layer = pt.nn.BlockSparseLinear(
        *(case.size, case.size),
        blocksize=case.block,
        density=case.density,
        generator=generator,
        dtype=dtype,
    )
    dense, layer = dense.to(case.device), layer.to(case.device)
    x, grad = (
        torch.randn(case.tokens, case.size, generator=generator).to(case.device, dtype) for _ in range(2)
    )
    error = _check(case, layer, x, grad)

    def both(module: torch.nn.Module) -> Callable[[], None]:
        inputs = x.clone().requires_grad_()

        def call() -> None:
            inputs.grad = None
            module.zero_grad(set_to_none=True)
            module(inputs).backward(grad)
            _wait(case)

        return call

    def forward(module: torch.nn.Module) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                module(x)
            _wait(case)

        return call

    calls = {
        "forward": forward(layer),
        "dense forward": forward(dense),
        "both": both(layer),
        "dense both": both(dense),
    }
    limits = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        if time.perf_counter() - start > _SLOW:
            limits[name] = _FEW
    found = interleave(calls, rounds, limits=limits, settle=_SETTLE)
    times = {name: timing.median for name, timing in found.items()}
    return Race(
        case,
        threads,
        times["forward"],
        times["both"],
        times["dense forward"],
        times["dense both"],
        _bytes(layer, x),
        _bytes(dense, x),
        error,
    )


def _wait(case: Case) -> None:
    if case.device != "cpu":
        torch.cuda.synchronize(case.device)


def _check(case: Case, layer: Any, x: torch.Tensor, grad: torch.Tensor) -> float:
    """Return the largest relative error of a layer's result and gradients."""
    inputs = x.clone().requires_grad_()
    y = layer(inputs)
    y.backward(grad)
    wide = torch.float64 if case.dtype == "float32" else torch.float32
    weight = layer.weight.detach().to(wide)
    dense, x_wide = weight.toarray().requires_grad_(), x.to(wide).requires_grad_()
    expected = torch.nn.functional.linear(x_wide, dense, layer.bias.detach().to(wide))
    expected.backward(grad.to(wide))
    at = pt.BSR.from_dense(dense.grad, layer.blocksize, mask=weight.mask)
    pairs = (
        (y, expected),
        (inputs.grad, x_wide.grad),
        (layer.values.grad, at.data),
        (layer.bias.grad, grad.to(wide).sum(0)),
    )
    with torch.no_grad():
        error = max(float((a.to(wide) - b).abs().max() / b.abs().max()) for a, b in pairs)
    layer.zero_grad(set_to_none=True)
    if not error <= _NEAR[case.dtype]:
        raise WrongResultError(f"{case}: results differ from the dense layer's by {error:.1e}")
    return error


def _bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Return what a training step keeps for a layer: weights, patterns, gradients, Adam's states."""
    optimizer = torch.optim.Adam(module.parameters())
    module(x).sum().backward()
    optimizer.step()
    kept = [*module.parameters(), *module.buffers()]
    kept += [p.grad for p in module.parameters()]
    kept += [one for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one)]
    module.zero_grad(set_to_none=True)
    return sum(one.numel() * one.element_size() for one in kept)


def report(races: Sequence[Race]) -> str:
    """Return a table of what was measured, with what is asked for."""
    header = [
        "dtype",
        "density",
        "block",
        "tokens",
        "forward",
        "dense",
        "x",
        "fwd + bwd",
        "dense",
        "x",
        "wanted",
    ]
    header += ["memory", "of dense", "error"]
    rows = []
    for race in races:
        case = race.case
        rows.append(
            [
                *(case.dtype, f"{case.density:.0%}", str(case.block), str(case.tokens)),
                *(f"{race.forward * 1e3:.2f} ms", f"{race.dense_forward * 1e3:.2f} ms"),
                f"{race.dense_forward / race.forward:.1f}",
                *(f"{race.both * 1e3:.2f} ms", f"{race.dense_both * 1e3:.2f} ms", f"{race.faster:.1f}"),
                *(race.verdict, f"{race.nbytes / 2**20:.1f} MiB", f"{race.nbytes / race.dense_nbytes:.1%}"),
                f"{race.error:.0e}",
            ]
        )
    this, first = cpu(), races[0]
    where = this.name if first.case.device == "cpu" else torch.cuda.get_device_name(first.case.device)
    told = (
        f"{where}, SIMD level {this.level}, {first.threads} threads, torch {torch.__version__}\n"
        f"BlockSparseLinear({first.case.size}, {first.case.size}) beside torch.nn.Linear; medians\n\n"
    )
    note = "\n\n" + _OPEN if any("open" in race.verdict for race in races) else ""
    return told + format_table(header, rows) + note
