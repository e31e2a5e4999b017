"""What compilers see of operations on a GPU: kernels, and no operation of this package."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="kernels are Triton's")

from prunus.torch.ops import attention, grouped, grouped_live, live, products, visible
from support import fake_gpu, replay

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("kernels are shown without TRITON_INTERPRET", allow_module_level=True)
if not visible._serves():
    pytest.skip("torch shows no kernels: it is older, or was told not to", allow_module_level=True)

# Triton says so when torch looks at a kernel, whatever it is launched with.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
KERNELS = {"dsd", "dsd_small", "sdd", "sdd_small", "union", "compact", "dots", "combine", "largest"}
KERNELS |= {
    "dots_few",
    "combine_few",
    "join",
    "lists",
    "attention",
    "merge",
    "grouped",
    "grouped_outer",
    "grouped_live",
    "ssd_at",
    "ssd_at_small",
}
TESTS = Path(__file__).parent.parent


def pattern(rows, cols, density=0.4):
    grid = torch.rand(rows, cols) < density
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[1:] = grid.sum(1).cumsum(0)
    return grid.nonzero()[:, 1].to(torch.int32), indptr


def block_sparse(rows=96, cols=70, block=(32, 16)):
    indices, indptr = pattern(-(-rows // block[0]), -(-cols // block[1]))
    return torch.randn(len(indices), *block), indices, indptr


def linear(data, indices, indptr, x, bias):
    """A layer, and the gradients of its operands."""
    y = products.dsd(data, indices, indptr, 96, 70, False, x, bias, True)
    grad = torch.tanh(y)
    made = SimpleNamespace(
        saved_tensors=(data, x, indices, indptr),
        meta=(96, 70, False, True, (32, 16)),
        needs_input_grad=(True, *[False] * 5, True, True, False),
    )
    gradients = products._dsd_backward(made, grad)
    return y, *(gradients[at] for at in (0, 6, 7))


def pruned(x, w, bias, mask):
    """Units under a mask, what they contribute, and the gradients of both."""
    h = live.live_linear(x, w, bias, mask, 2)
    y = live.live_combine(h, w, mask, 2, True)
    return h, y, live.live_outer(h, torch.tanh(y), mask, 2, True), live.live_outer(x, y, None, 1)


def decided(x, w, bias):
    """Units that decide which are live."""
    sums = live.live_sums(x, w, bias)
    mask = live.above(sums, 0.1) & live.largest(sums, 5)
    return live.live_known(sums, x, w, bias, mask, 1), live.straight(sums, mask, 1)


def attended(q, k, v, mask):
    return attention.attention(q, k, v, mask, 0.3, False, 16), attention.attention(
        q, k, v, None, 0.3, True, 16
    )


def one_query(q, k, v):
    return (attention.attention(q, k, v, None, 0.3, True, 16),)


def experts(x, w, offsets):
    y = grouped.grouped_mm(x, w, offsets)
    return y, grouped.grouped_outer(y, x, offsets)


def pruned_experts(x, w, mask, offsets):
    """Experts' units under a mask, what they contribute, and the gradients of both."""
    h = grouped_live.grouped_live_linear(x, [w], mask, 2, offsets)
    sums = grouped_live.grouped_live_sums(x, [w], None, 2, offsets)
    known = grouped_live.grouped_live_known(sums, x, [w], mask, 2, offsets)
    y = grouped_live.grouped_live_combine(h, [w], mask, 2, offsets, True)
    return y, known, grouped_live.grouped_live_outer(known, y, mask, 2, offsets, False, True)


def gradient(data, indices, indptr, small, *pattern):
    """What BSR @ BSR has for gradients: products at chosen blocks."""
    w, u = (data, indices, indptr, 96, 70, False), (small, *pattern, 40, 24, False)
    at = products.ssd_at(*w, *w[:5], True, *pattern_of_squares(indices), 32, 32)
    return at, products.ssd_at(*u[:5], True, *u, *pattern_of_squares(pattern[0]), 8, 8)


def pattern_of_squares(like):
    """The diagonal of three blocks by three."""
    at = torch.arange(3, dtype=torch.int32, device=like.device)
    return at, torch.arange(4, dtype=torch.int32, device=like.device)


def cases():
    torch.manual_seed(5)
    data, indices, indptr = block_sparse()
    few = block_sparse(40, 24, (4, 8))
    heads = [torch.randn(1, 2, 40, 16) for _ in range(3)]
    blocks = (torch.rand(1, 2, 3, 3) < 0.5) | torch.eye(3, dtype=torch.bool)
    units = torch.randn(30, 20), torch.randn(24, 20), torch.randn(24)
    return {
        "linear": (linear, data, indices, indptr, torch.randn(33, 70), torch.randn(96)),
        "small": (
            lambda *w: (products.dsd(*w[:3], 40, 24, True, w[3], None, False),),
            *few,
            torch.randn(40, 3),
        ),
        "both": (gradient, data, indices, indptr, *few),
        "pruned": (pruned, *units, torch.rand(30, 12) < 0.3),
        "decided": (decided, *units),
        "attended": (attended, *heads, blocks),
        "few": (pruned, units[0][:3], *units[1:], torch.rand(3, 12) < 0.3),
        "segments": (
            lambda h, w, mask: (live.live_combine(h, w, mask, 2),),
            torch.randn(3, 512),
            torch.randn(512, 16),
            torch.rand(3, 256) < 0.3,
        ),
        "small blocks": (
            lambda a, b, *w: (products.sdd(a, b, *w, 4, 8),),
            torch.randn(16, 9),
            torch.randn(9, 40),
            *pattern(4, 5),
        ),
        "one query": (one_query, heads[0][:, :, :1], *(torch.randn(1, 2, 700, 16) for _ in range(2))),
        "experts": (
            experts,
            torch.randn(20, 12),
            torch.randn(3, 16, 12),
            torch.tensor([0, 7, 7, 20], dtype=torch.int32),
        ),
        "pruned experts": (
            pruned_experts,
            torch.randn(20, 12),
            torch.randn(3, 16, 12),
            torch.rand(20, 8) < 0.4,
            torch.tensor([0, 7, 7, 20], dtype=torch.int32),
        ),
    }


def on_gpu(args):
    """Fake tensors on a GPU, like others."""
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in args]


def test_graphs_launch_kernels_that_compute_what_operations_do(tmp_path):
    graphs = {}
    for name, (function, *args) in cases().items():
        with fake_gpu.gpu():
            graph = fake_gpu.graph_of(function, *on_gpu(args))
        called = fake_gpu.targets(graph)
        assert not [one for one in called if "prunus" in one], name
        assert "triton_kernel_wrapper_functional" in called, name
        graphs[name] = replay.told(graph, args, function(*args))
    launched = {kernel for graph in graphs.values() for _, kernel in graph["kernels"].values()}
    assert launched == KERNELS
    path = tmp_path / "graphs.pt"
    torch.save(graphs, path)
    said = subprocess.run(
        [sys.executable, "-m", "support.replay", path],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not said.returncode, said.stderr
    far = {
        name: float(worst) for name, worst in (line.rsplit(maxsplit=1) for line in said.stdout.splitlines())
    }
    assert far.keys() == graphs.keys()
    assert max(far.values()) < 1e-4, far


def test_kernels_of_inductors_source_compile(tmp_path):
    def function(data, indices, indptr, x, w, mask):
        y = torch.relu(products.dsd(data, indices, indptr, 96, 70, False, x, None, True))
        d = products.sdd(y.mT, x, indices, indptr, 32, 16)
        return live.live_combine(y, w, mask, 1), d

    args = *cases()["linear"][1:5], torch.randn(96, 24), torch.ones(33, 96, dtype=torch.bool)
    with fake_gpu.gpu():
        half = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in on_gpu(args)]
        code = fake_gpu.code_of(function, *half)
    assert "ops.prunus" not in code
    made = fake_gpu.kernels(code, tmp_path)
    assert {name.rpartition("_")[0] for name in made} == {"dsd", "sdd", "union", "compact", "combine"}
    for one in made.values():
        assert one.metadata.target.arch == 90
        assert one.metadata.enable_fp_fusion  # as launches by themselves have it
        assert one.asm["cubin"]


def opaque(function, *args):
    """Whether a function's graph has an operation of this package, and no kernel."""
    called = fake_gpu.targets(fake_gpu.graph_of(function, *args))
    return any("prunus" in one for one in called) and not any("triton" in one for one in called)


def layer(data, indices, indptr, x):
    return products.dsd(data, indices, indptr, 96, 70, False, x, None, True)


def test_what_reads_values_stays_opaque():
    _, q, k, v, blocks = cases()["attended"]

    def gradients(*args):
        return attention.attention_backward(*args, 0.3, False, 16)

    with fake_gpu.gpu():
        assert opaque(gradients, *on_gpu((q, q, k, v, blocks)))


def test_what_would_be_copied_for_nothing_stays_opaque(monkeypatch):
    """torch takes offsets of groups for written, which are copied."""
    _, *args = cases()["experts"]
    monkeypatch.setattr(visible, "_SMALL", 3)
    with fake_gpu.gpu():
        assert opaque(grouped.grouped_mm, *on_gpu(args))


def test_what_might_be_written_twice_stays_opaque(monkeypatch):
    """Of the launches before, nothing is left either."""
    written = visible._written

    def twice(launch):
        return written(launch) * (2 if launch.kernel.__name__ == "dots" else 1)

    x, w, bias = cases()["decided"][1:]
    monkeypatch.setattr(visible, "_written", twice)
    with fake_gpu.gpu():
        mask = torch.empty(30, 24, dtype=torch.bool, device="cuda")
        assert opaque(lambda *a: live.live_linear(*a, 1), *on_gpu((x, w, bias)), mask)


def test_scales_whose_bits_a_compiler_mistakes_stay_opaque():
    _, q, k, v, _ = cases()["attended"]

    def negative(q, k, v):
        return attention.attention(q, k, v, None, -0.3, True, 16)

    with fake_gpu.gpu():
        assert opaque(negative, *on_gpu((q, k, v)))


def test_sizes_that_are_symbols_stay_symbols():
    args = cases()["linear"][1:5]
    with fake_gpu.gpu(symbols=True) as mode:
        *w, x = on_gpu(args)
        rows = mode.shape_env.create_unbacked_symint()
        torch._check(rows > 1)
        assert opaque(layer, *w, torch.empty(rows, x.shape[1], device="cuda"))


def test_export_keeps_operations():
    class Layer(torch.nn.Module):
        def forward(self, *args):
            return layer(*args)

    args = cases()["linear"][1:5]
    with fake_gpu.gpu():
        program = torch.export.export(Layer(), tuple(on_gpu(args)))
        assert fake_gpu.targets(program) == ["prunus.dsd.default"]
        assert fake_gpu.targets(program.run_decompositions({})) == ["prunus.dsd.default"]


def test_host_memory_stays_opaque():
    assert opaque(layer, *cases()["linear"][1:5])


def test_what_was_compiled_before_is_known_by_the_code_and_by_what_was_measured(tmp_path, monkeypatch):
    from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code
    from torch._library.triton import get_triton_kernels_for_op

    from prunus.cuda.tuning import ENVIRONMENT

    def source():
        (kernel,) = get_triton_kernels_for_op("prunus::dsd")
        return user_defined_triton_kernel_transitive_closure_source_code(kernel)

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "tiles.json"))
    before = source()
    assert source() == before
    (tmp_path / "tiles.json").write_text("{}")
    assert source() != before


def test_it_can_be_switched_off(monkeypatch):
    assert visible._serves.__wrapped__()
    monkeypatch.setenv(visible.ENVIRONMENT, "off")
    assert not visible._serves.__wrapped__()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(cases()))
def test_compiled_and_eager_agree_on_a_gpu(name):
    function, *args = cases()[name]
    args = [x.cuda() for x in args]
    for made, expected in zip(torch.compile(function, fullgraph=True)(*args), function(*args), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gradients_of_compiled_layers_agree_on_a_gpu():
    data, indices, indptr, x = (one.cuda() for one in cases()["linear"][1:5])
    found = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        w, v = data.clone().requires_grad_(), x.clone().requires_grad_()
        torch.tanh(function(w, indices, indptr, v)).square().sum().backward()
        found.append((w.grad, v.grad))
    for made, expected in zip(*found, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
