"""What the GPU reaches: bytes that a large copy moves, operations of a large dense product."""

from __future__ import annotations

from functools import partial
from typing import Final

from prunus.bench.gpu.bench import Bench, Entry
from prunus.bench.gpu.operands import KIND, multiply
from prunus.bench.gpu.record import Case

__all__ = ["COPY", "PRODUCT", "run"]

#: What the two are called.
COPY: Final = "copy"
PRODUCT: Final = "dense product"


def run(bench: Bench) -> None:
    """Measure both."""
    _copy(bench)
    _product(bench)


def _copy(bench: Bench) -> None:
    torch, nbytes = bench.torch, bench.sizes.copied
    source = torch.randint(1, 1 << 30, (nbytes // 4,), dtype=torch.int32, device=bench.device)
    target = torch.empty_like(source)
    call = partial(target.copy_, source)
    case = Case("ceilings", COPY, KIND, nbytes)
    # Values are integers, and double precision has all of them.
    bench.race([Entry(case, "torch", "ceiling", lambda: [call], source.double, 0.0, 2.0 * nbytes)])


def _product(bench: Bench) -> None:
    n = bench.sizes.gemm
    a, b = bench.randn(n, n), bench.randn(n, n)
    case = Case("ceilings", PRODUCT, KIND, n, columns=n)
    exact = partial(multiply, bench, a, b)
    bench.race([Entry(case, "torch", "ceiling", lambda: [lambda: a @ b], exact, 2.0 * n**3, 6.0 * n * n)])
