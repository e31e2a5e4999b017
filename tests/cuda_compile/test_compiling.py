"""Kernels compiled ahead of time: that the table, which ``just cuda`` prints whole, can be believed."""

import os
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="compiling kernels ahead of time needs torch")
pytest.importorskip("triton", reason="compiling kernels ahead of time needs Triton")
if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    pytest.skip("kernels are compiled without TRITON_INTERPRET", allow_module_level=True)

import triton
import triton.language as tl

from prunus.cli import main
from prunus.cuda import configs, products
from prunus.cuda.chips import CHIPS
from prunus.cuda.compiling import plan, record, rows
from prunus.cuda.compiling.build import build
from prunus.cuda.compiling.case import Case, Units, blocks, tensor
from prunus.cuda.compiling.cases import CASES
from prunus.cuda.compiling.recording import ahead
from prunus.cuda.compiling.table import faults, format_rows
from prunus.cuda.runtime import launch, place_of
from prunus.cuda.versions import specialised

ARCHS = list(CHIPS)


@triton.jit
def hungry(x, out, n, TM: tl.constexpr):
    """Sorts more than a multiprocessor has room for."""
    at = tl.arange(0, TM)
    tl.store(out + at, tl.sort(tl.load(x + at, at < n, 0.0)))


@triton.jit
def crowded(x, out, TM: tl.constexpr):
    """Keeps more sums than a thread has registers."""
    row, col = tl.arange(0, TM)[:, None], tl.arange(0, TM)[None, :]
    acc = tl.zeros((TM, TM), tl.float32)
    for step in range(8):
        acc += tl.load(x + step + row * 8) * tl.load(x + step * TM + col)
    tl.store(out + row * TM + col, acc)


def product(where):
    w = blocks(where, (256, 256), (64, 64), "bfloat16")
    x = tensor(where, 256, 128, dtype="bfloat16")
    products.dsd(where, w, x, tensor(where, 256, 128, dtype="bfloat16"))


def found(case, archs=("sm_80",)):
    return list(rows(plan([case], archs)))


@pytest.mark.parametrize("arch", ARCHS)
def test_what_ships_fits(arch):
    (row,) = found(Case("a product", "bfloat16", product, {"dsd": Units.NATIVE}), [arch])
    assert row.faults == ()
    assert row.built.shared <= CHIPS[arch].shared
    assert row.built.registers > 0
    assert row.built.stack == 0
    assert row.kernel == "dsd"
    shown = format_rows([row])
    assert arch in shown
    assert str(row.built.registers) in shown


@pytest.mark.parametrize("capability", [86, 89])
@pytest.mark.parametrize(
    ("name", "dtype", "kernel"),
    [
        ("4096², blocks 64 x 64, 25%", "bfloat16", "sdd"),
        ("attention 4096 x 4096, d 256, heads 32 of 8, blocks 64", "bfloat16", "attention"),
        ("64 rows, 6 of 64 experts 2048 x 1408, shared", "bfloat16", "grouped"),
    ],
    ids=["sdd", "attention", "grouped"],
)
def test_small_gpus_of_a_family(capability, name, dtype, kernel):
    """The largest tiles that are chosen where a program has 99 KiB: as counted, and nothing spills."""
    where = replace(ahead("sm_80"), shared=99 * 1024, multiprocessors=84, name="a small GPU")
    (case,) = (case for case in CASES if (case.name, case.dtype) == (name, dtype) and kernel in case.units)
    launch = next(one for one in record(case.call, where) if one.kernel.fn.__name__ == kernel)
    built = build(specialised(launch.kernel, launch.arguments, launch.options, capability))
    assert 48 * 1024 < built.shared <= where.shared
    assert built.stack == 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.more], ids=lambda case: f"{case.name}, {case.dtype}"
)
def test_nothing_is_read_back(case, arch):
    """Meta tensors hold no values: whoever asked for one would fail here."""
    if case.archs and arch not in case.archs:
        pytest.skip(f"not for {arch}")
    launched = {one.kernel.fn.__name__ for one in record(case.call, ahead(arch))}
    assert set(case.units) <= launched


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.cpu(), int, bool]
)
def test_what_reads_back_is_reported(ask):
    case = Case("reads back", "float32", lambda where: ask(tensor(where, 1, dtype="float32")), {})
    (row,) = found(case)
    assert "cannot be recorded" in row.faults[0]
    assert row.built is None


def test_too_much_shared_memory_is_reported(monkeypatch):
    monkeypatch.setattr(configs, "dsd", lambda *_, **__: configs.Tile(64, 256, 64, 4, 16))
    (row,) = found(Case("greedy", "bfloat16", product, {"dsd": Units.NATIVE}))
    assert row.built.shared > CHIPS["sm_80"].shared
    assert f"a program may use {CHIPS['sm_80'].shared}" in row.faults[0]
    assert "greedy" in faults([row])[0]


def test_spills_are_reported():
    def call(where):
        x, out = tensor(where, 4096, dtype="float32"), tensor(where, 256, 256, dtype="float32")
        launch(where, crowded, (1,), x, out, TM=256, num_warps=1)

    (row,) = found(Case("spills", "float32", call, {}))
    assert row.built.stack > 0
    assert any("spilled" in fault for fault in row.faults)


@pytest.mark.parametrize(
    ("dtype", "units", "expected"),
    [("bfloat16", Units.PLAIN, "found mma.sync"), ("float32", Units.NATIVE, "expected mma.sync, found no")],
)
def test_other_instructions_are_reported(dtype, units, expected):
    def call(where):
        w = blocks(where, (256, 256), (64, 64), dtype)
        x = tensor(where, 256, 32, dtype=dtype)
        products.dsd(where, w, x, tensor(where, 256, 32, dtype=dtype))

    (row,) = found(Case("a product", dtype, call, {"dsd": units}))
    assert expected in row.faults[0]


def test_what_does_not_compile_is_reported():
    def call(where):
        x = tensor(where, 100, dtype="float32")
        launch(where, hungry, (1,), x, x, 100, TM=100)  # no power of two

    (row,) = found(Case("odd", "float32", call, {}))
    assert row.built is None
    assert "does not compile" in row.faults[0]


def test_a_kernel_that_is_not_launched_is_reported():
    made = rows(plan([Case("nothing", "bfloat16", lambda where: None, {"dsd": Units.NATIVE})], ["sm_90"]))
    assert [row.faults for row in made] == [("the call does not launch it",)]


def test_launches_that_share_a_kernel_are_compiled_once():
    case = Case("a product", "bfloat16", product, {"dsd": Units.NATIVE})
    assert len(plan([case, case._replace(name="again")], ["sm_80"]).jobs) == 1
    assert len(plan([case], ["sm_80", "sm_90"]).jobs) == 2


def test_specialised_as_a_launch_would():
    """What is 1 is a constant, what 16 divides is known to be, and other sizes share a kernel."""

    def at(rows, columns):
        def call(where):
            w = blocks(where, (rows, 256), (64, 64), "bfloat16")
            x = tensor(where, 256, columns, dtype="bfloat16")
            out = tensor(where, rows, columns, dtype="bfloat16")
            products.dsd(where, w, x, out, tile=configs.Tile(64, 128, 64))

        (one,) = record(call, ahead("sm_90"))
        return specialised(one.kernel, one.arguments, one.options, 90)

    first, second, odd = at(256, 256), at(512, 384), at(250, 256)
    assert first.key == second.key
    assert first.key != odd.key
    assert first.source.signature["x_col"] == "constexpr"
    assert first.source.signature["data"] == "*bf16"


def test_meta_tensors_have_no_place_outside():
    with pytest.raises(Exception, match="lives on meta"):
        place_of(torch.empty(1, device="meta"))
    seen = []
    record(lambda where: seen.append(place_of(torch.empty(1, device="meta"))), ahead("sm_90"))
    assert seen == [ahead("sm_90")]


def test_command(capsys):
    assert main(["cuda", "compile", "--arch", "sm_90", "--kernel", "dsd_small", "--jobs", "1"]) == 0
    told = capsys.readouterr().out
    assert "dsd_small" in told
    assert "0 faults" in told


def test_command_tells_what_is_wrong(monkeypatch, capsys):
    from prunus.cuda.compiling import table

    bad = Case("a product", "bfloat16", product, {"dsd": Units.PLAIN})
    monkeypatch.setattr(table, "_shipped", lambda: [bad])
    assert main(["cuda", "compile", "--arch", "sm_80", "--jobs", "1"]) == 1
    assert "fault: sm_80 dsd (a product, bfloat16): expected" in capsys.readouterr().out
    assert main(["cuda", "compile", "--kernel", "no such"]) == 1


def test_command_in_processes(capsys):
    assert main(["cuda", "compile", "--arch", "sm_80,sm_90", "--kernel", "dsd_small", "--jobs", "2"]) == 0
    assert "2 kernels" in capsys.readouterr().out


def test_not_in_the_interpreter(monkeypatch, capsys):
    from prunus.cuda import versions

    real = versions.libraries()
    monkeypatch.setattr(versions, "libraries", lambda: real._replace(interpreted=True))
    assert main(["cuda", "compile"]) == 1
    assert "without TRITON_INTERPRET" in capsys.readouterr().err
