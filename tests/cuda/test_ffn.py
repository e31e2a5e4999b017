"""Feed-forward layers of tensors, against the reference engine's of the same values."""

import numpy as np
import pytest
import torch

import prunus as pr
from prunus import PrunusError
from prunus.cuda import plans, rows
from prunus.cuda.compiling.recording import ahead, record
from prunus.cuda.configs import Tile
from prunus.cuda.feed_forward import gated_few
from prunus.interop.torch import as_array

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 4e-2}
FLOATS = list(TOLERANCE)
UNITS, FEATURES, OUT = 45, 20, 13


def weights(rng, where, dtype=torch.float32, lead=(9,)):
    """Return x, w_up, w_down, w_gate, b_up and b_down; of few bits: no rounding turns a decision over."""
    shapes = (*lead, FEATURES), (UNITS, FEATURES), (OUT, UNITS), (UNITS, FEATURES), (UNITS,), (OUT,)
    made = (np.round(rng.standard_normal(shape) * 4) / 4 for shape in shapes)
    return [torch.from_numpy(one).to(dtype).to(where.device) for one in made]


def host(value):
    return as_array(value.cpu()) if isinstance(value, torch.Tensor) else value


def near(got, exact, dtype=torch.float32):
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert tuple(got.shape) == exact.shape
    exact = np.asarray(exact).astype(float)
    atol = TOLERANCE[dtype] * 4 * np.abs(exact).max(initial=1e-3)
    np.testing.assert_allclose(got.double().cpu().numpy(), exact, rtol=0, atol=atol)


def policies(rng, count, branches):
    return [
        None,
        pr.Threshold(0.0),
        pr.Threshold(4.0, norm="l2"),
        pr.Threshold(1e9),
        pr.Threshold(4.0, rows=3),
        pr.TopK(fraction=0.3),
        pr.Fixed(np.arange(branches) % 3 == 0),
        pr.Fixed(rng.random((count, branches)) < 0.3),
    ]


@pytest.mark.parametrize("decide", ["up", "gate", None])
@pytest.mark.parametrize("branch", [1, 4, 11])
def test_every_policy(rng, place, decide, branch):
    x, up, down, gate, b_up, b_down = weights(rng, place)
    kept = (up, down, None if decide is None else gate, decide or "up")
    layer = pr.FFN.pack(*kept, b_up=b_up, b_down=b_down)
    assert isinstance(layer, pr.cuda.FFN)
    same = layer.to("cpu")
    assert isinstance(same, pr.FFN)
    for prune in policies(rng, 9, -(-UNITS // branch)):
        options = {"activation": "relu", "prune": prune, "branch": branch}
        with pr.device("reference"):
            exact = same(host(x), **options)
        near(layer(x, **options), exact)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("in_line", [False, True])
def test_without_packing(rng, place, gated, in_line):
    x, up, down, gate, *biases = weights(rng, place)
    if in_line:
        down = down.T.contiguous().T
    parts = (x, up, down, gate if gated else None, *biases)
    for prune in policies(rng, 9, 12):
        with pr.device("reference"):
            exact = pr.ffn(*map(host, parts), prune=prune, branch=4)
        near(pr.ffn(*parts, prune=prune, branch=4), exact)
    with pr.device("reference"):
        exact = pr.ffn(*map(host, parts[:4]), activation="silu")
    near(pr.ffn(*parts[:4], activation="silu"), exact)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("prune", [None, pr.Threshold(0.5), pr.TopK(count=9)], ids=str)
def test_dtypes_and_activations(rng, place, dtype, prune):
    x, up, down, gate, b_up, b_down = weights(rng, place, dtype)
    layer = pr.FFN.pack(up, down, gate, "gate", b_up=b_up, b_down=b_down)
    assert layer.dtype == dtype
    for activation in ("relu", "gelu", "silu", None):
        with pr.device("reference"):
            exact = layer.to("cpu")(host(x), activation, prune)
        near(layer(x, activation, prune), exact, dtype)
    with pr.device("reference"):
        exact = pr.ffn(*map(host, (x, up, down, gate)), prune=prune)
    near(pr.ffn(x, up, down, gate, prune=prune), exact, dtype)


@pytest.mark.parametrize("prune", [None, pr.Threshold(0.5)], ids=str)
def test_operands_of_several_dtypes(rng, place, prune):
    x, up, down, gate, b_up, b_down = weights(rng, place)
    layer = pr.FFN.pack(up.half(), down.half(), gate.half(), b_up=b_up, b_down=b_down)
    assert layer.dtype == torch.float16
    with pr.device("reference"):
        exact = layer.to("cpu")(host(x), prune=prune)
    near(layer(x, prune=prune), exact)
    near(layer(x.double(), prune=prune), exact, torch.float64)
    near(layer(x.bfloat16(), prune=prune), exact)
    assert pr.FFN.pack(up, down.half()).dtype == torch.float32
    assert pr.FFN.pack(up, down, dtype="bfloat16").dtype == torch.bfloat16
    assert pr.FFN.pack(up, down, dtype=torch.float64).dtype == torch.float64
    near(pr.ffn(x.half(), up.bfloat16(), down, prune=prune), pr.ffn(*map(host, (x, up, down)), prune=prune))


@pytest.mark.parametrize("prune", [None, pr.Threshold(0.5)], ids=str)
def test_shapes(rng, place, prune):
    x, up, down, gate, *_ = weights(rng, place, lead=(2, 3))
    for layer in (pr.FFN.pack(up, down, gate), lambda x, prune: pr.ffn(x, up, down, gate, prune=prune)):
        whole = layer(x, prune=prune)
        assert whole.shape == (2, 3, OUT)
        one = layer(x[1, 2], prune=prune)
        assert one.shape == (OUT,)
        torch.testing.assert_close(one, whole[1, 2], rtol=1e-5, atol=1e-4)
        assert layer(x[:0], prune=prune).shape == (0, 3, OUT)
        turned = layer(x.transpose(0, 1).contiguous().transpose(0, 1), prune=prune)
        torch.testing.assert_close(turned, whole, rtol=1e-5, atol=1e-4)
        wide = torch.zeros((2, 3, 2 * FEATURES), device=x.device)
        wide[..., ::2] = x
        torch.testing.assert_close(layer(wide[..., ::2], prune=prune), whole, rtol=1e-5, atol=1e-4)
    for units, features in ((0, FEATURES), (UNITS, 0)):
        layer = pr.FFN.pack(up[:units, :features], down[:, :units], b_down=down[:, 0])
        got = layer(x[..., :features], prune=prune)
        near(got, np.broadcast_to(host(down[:, 0]), (2, 3, OUT)))
        got = pr.ffn(x[..., :features], up[:units, :features], down[:, :units], b_down=down[:, 0])
        near(got, np.broadcast_to(host(down[:, 0]), (2, 3, OUT)))


def test_out(rng, place):
    x, up, down, *_ = weights(rng, place)
    for prune in (None, pr.Threshold(0.5)):
        layer = pr.FFN.pack(up, down)
        exact = layer(x, prune=prune)
        out = torch.full_like(exact, float("nan"))
        assert layer(x, prune=prune, out=out) is out
        assert torch.equal(out, exact)
        # In place of its input, which is read before.
        square = pr.FFN.pack(up, up.T.contiguous())
        exact = square(x, prune=prune)
        there = x.clone()
        assert torch.equal(square(there, prune=prune, out=there), exact)
    with pytest.raises(TypeError, match="out must be a tensor, got ndarray"):
        layer(x, out=np.empty((9, OUT), np.float32))
    for wrong in (out.double(), out[:4], out.T.contiguous().T):
        with pytest.raises(ValueError, match=r"out must be torch.float32 of shape \(9, 13\) in C order"):
            layer(x, out=wrong)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("in_line", [False, True])
def test_dead_units_do_not_meet_infinities(rng, place, value, in_line):
    x, up, down, gate, *_ = weights(rng, place)
    live = rng.random((9, UNITS)) < 0.5
    live[:, 7] = np.arange(9) % 2 == 0
    up[7], down[3, 7], gate[7] = value, value, value
    if in_line:
        down = down.T.contiguous().T
    prune = pr.Fixed(live)
    for parts in ((up, down), (up, down, gate)):
        with pr.device("reference"):
            exact = pr.ffn(*map(host, (x, *parts)), prune=prune)
        for got in (pr.ffn(x, *parts, prune=prune), pr.FFN.pack(*parts)(x, prune=prune)):
            np.testing.assert_array_equal(np.isfinite(host(got)), np.isfinite(exact))
            assert np.isfinite(host(got))[1::2].all()
            np.testing.assert_allclose(host(got)[1::2], exact[1::2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 9])
def test_a_function_decides(rng, place, count):
    x, up, down, *_ = weights(rng, place, lead=(count,))
    seen = []

    def third(statistics):
        seen.append(statistics)
        return statistics.norms.argsort(1, descending=True).argsort(1) < 4

    got = pr.FFN.pack(up, down)(x, prune=third, branch=3)
    assert len(seen) == 1
    assert isinstance(seen[0].norms, torch.Tensor)
    h = torch.relu(x @ up.T)
    norms = h.reshape(count, 15, 3).amax(2)
    live = norms.argsort(1, descending=True).argsort(1) < 4
    near(got, host((h * live.repeat_interleave(3, 1)) @ down.T))


def test_a_predictor(rng, place):
    x, up, down, *_ = weights(rng, place, lead=(60,))
    guess = pr.Predictor.fit(host(x), host(up), rank=20, keep=0.3)
    layer = pr.FFN.pack(up, down, decide="predictor")
    with pr.device("reference"):
        exact = layer.to("cpu")(host(x[:7]), prune=guess)
    near(layer(x[:7], prune=guess), exact)
    near(layer(x), host(torch.relu(x @ up.T) @ down.T))
    with pytest.raises(ValueError, match="packed with decide='predictor': prune must be a policy that fore"):
        layer(x, prune=pr.Threshold(0.0))


@pytest.mark.parametrize(("count", "dtype"), [(3, torch.float32), (2, torch.bfloat16), (1, torch.float64)])
def test_a_few_rows(rng, place, monkeypatch, count, dtype):
    """Which have kernels of their own, of which the interpreter is not given any otherwise."""
    monkeypatch.setattr(plans, "is_few", lambda where, rows: rows <= 4)
    x, up, down, gate, b_up, b_down = weights(rng, place, dtype, lead=(count,))
    layer = pr.FFN.pack(up, down, gate, b_up=b_up, b_down=b_down)
    for prune in (
        pr.Threshold(2.0),
        pr.TopK(count=3),
        pr.Fixed(np.arange(23) % 3 == 0),
        pr.Fixed(rng.random((count, 23)) < 0.4),
    ):
        with pr.device("reference"):
            exact = layer.to("cpu")(host(x), "silu", prune, branch=2)
        got = layer(x, "silu", prune, branch=2)
        near(got, exact, dtype)
        for at in range(count):  # a row of its own, to the bit
            own = isinstance(prune, pr.Fixed) and prune.mask.ndim > 1
            alone = pr.Fixed(prune.mask[at]) if own else prune
            assert torch.equal(layer(x[at], "silu", alone, branch=2), got[at])


def test_a_few_rows_of_a_gate_at_once(rng, place, monkeypatch):
    monkeypatch.setattr(plans, "is_few", lambda where, rows: rows <= 4)
    x, up, _, gate, b_up, _ = weights(rng, place, lead=(3,))
    live = torch.from_numpy(rng.random((3, UNITS)) < 0.4).to(x.device)
    one, first, two = (torch.empty(3, UNITS, device=x.device) for _ in range(3))
    gated_few(place, x, up, gate, one, live, 1, b_up, "gelu")
    rows.dots(place, x, gate, first, live, activation="gelu")
    rows.dots(place, x, up, two, live, bias=b_up, scale=first)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    assert not one[~live].any()


@pytest.mark.parametrize("few", [True, False])
def test_sums_of_segments_are_joined(rng, place, monkeypatch, few):
    """Which GPUs with more multiprocessors than tiles have, and the interpreter has not."""
    monkeypatch.setattr(plans, "is_few", lambda where, rows: few)
    monkeypatch.setattr(plans, "combine_few", lambda *_: plans.Few(16, 4, 16, 3))
    monkeypatch.setattr(plans, "combine", lambda *_: (Tile(16, 16, 16), 3))
    x, _, down, *_ = weights(rng, place, lead=(3,))
    h = torch.from_numpy(rng.standard_normal((3, UNITS))).float().to(x.device)
    live = torch.from_numpy(rng.random((3, UNITS)) < 0.4).to(x.device)
    bias, out = x[0, :OUT], x[:, :OUT].clone()
    exact = out.double() + (h * live).double() @ down.T.double() + bias.double()
    rows.combine(place, h, down.T.contiguous(), out, live, bias=bias, add=True)
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-5)


def test_to_and_from_the_host(rng, place):
    _, up, down, gate, b_up, b_down = weights(rng, place, torch.bfloat16)
    there = pr.FFN.pack(up, down, gate, "gate", b_up=b_up, b_down=b_down)
    assert (there.hidden, there.features, there.out_features) == (UNITS, FEATURES, OUT)
    assert there.gated
    assert there.decide == "gate"
    assert there.nbytes == 2 * (2 * UNITS * FEATURES + OUT * UNITS)
    assert "45 -> 13 bfloat16" in repr(there)
    assert there.to("cuda") is there
    here = there.to("cpu")
    for packed in (here, here.apart()):
        again = packed.to("cuda")
        assert again.decide == "gate"
        for one, other in zip(
            (again._up, again._gate, again._down, again._b_up, again._b_down),
            (up, gate, down.T, b_up, b_down),
            strict=True,
        ):
            assert torch.equal(one, other)
    # Copies: what is frozen does not change with the caller's tensors.
    up.zero_()
    b_up.zero_()
    assert there._up.any()
    assert there._b_up.any()


def test_a_trace_counts_as_on_the_host(rng, place):
    x, up, down, gate, *_ = weights(rng, place, lead=(140,))
    for prune in (None, pr.Threshold(2.0), pr.Fixed(rng.random((140, UNITS)) < 0.2)):
        for parts in ((up, down), (up, down, gate)):
            layer = pr.FFN.pack(*parts)
            with pr.device("reference"), pr.trace() as want:
                layer.to("cpu")(host(x), prune=prune)
                pr.ffn(*map(host, (x, *parts)), prune=prune)
            with pr.trace() as got:
                layer(x, prune=prune)
                pr.ffn(x, *parts, prune=prune)
            for one, other in zip(got.records, want.records, strict=True):
                assert one.name == other.name
                for name in ("flops", "flops_skipped", "bytes_loaded", "bytes_skipped", "live", "union_live"):
                    assert getattr(one, name) == getattr(other, name), name


def test_faults(rng, place):
    x, up, down, gate, _, b_down = weights(rng, place)
    with pytest.raises(TypeError, match=r"made by FFN.pack"):
        pr.cuda.FFN()
    layer = pr.FFN.pack(up, down)
    for call in (pr.FFN.pack, lambda *args: pr.ffn(x, *args)):
        with pytest.raises(ValueError, match=r"w_down has shape \(13, 44\), expected \(d_out, 45\)"):
            call(up, down[:, 1:])
        with pytest.raises(ValueError, match=r"w_gate has shape \(44, 20\), w_up \(45, 20\)"):
            call(up, down, gate[1:])
        with pytest.raises(ValueError, match=r"w_up must have two dimensions \(out, in\), got shape \(20,\)"):
            call(up[0], down)
        with pytest.raises(TypeError, match="w_up must hold floats"):
            call(up.int(), down)
        with pytest.raises(PrunusError, match=r"w_down \(numpy.ndarray\) is in host memory"):
            call(up, down.numpy())
    with pytest.raises(ValueError, match=r"b_up must have shape \(45,\), got \(13,\)"):
        pr.FFN.pack(up, down, b_up=b_down)
    with pytest.raises(ValueError, match="decide must be one of up, gate, predictor, got 'down'"):
        pr.FFN.pack(up, down, decide="down")
    with pytest.raises(ValueError, match="decide='gate' needs w_gate"):
        pr.FFN.pack(up, down, decide="gate")
    with pytest.raises(TypeError, match="weights are kept as floats"):
        pr.FFN.pack(up, down, dtype="int8")
    with pytest.raises(ValueError, match="x has 19 features, the weights expect 20"):
        layer(x[:, 1:])
    with pytest.raises(ValueError, match="activation must be one of"):
        layer(x, activation="tanh")
    with pytest.raises(ValueError, match="branch must be at least 1"):
        layer(x, branch=0)
    with pytest.raises(PrunusError, match=r"x \(numpy.ndarray\) is in host memory"):
        layer(x.numpy())
    with pytest.raises(TypeError, match="x is a tensor that requires grad"):
        layer(x.clone().requires_grad_())
    with pytest.raises(PrunusError, match="no device 'tpu'"):
        layer.to("cpu").to("tpu")
    with pytest.raises(PrunusError, match="no device 'tpu'"):
        layer.to("tpu")


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("gated", [False, True])
def test_nothing_is_read_back(count, gated):
    """Tensors without values: whoever asked for one would raise."""
    mask = np.arange(96) % 2 == 0
    prunes = [
        None,
        pr.Threshold(0.1),
        pr.Threshold(0.1, rows=2),
        pr.TopK(fraction=0.1),
        pr.Fixed(mask),
        pr.Predictor.fit(np.eye(64, dtype=np.float32), np.ones((96, 64), np.float32), rank=4, keep=0.2),
    ]

    def call(where):
        x, up, down, gate = (
            torch.empty(shape, dtype=torch.bfloat16, device="meta")
            for shape in ((count, 64), (96, 64), (64, 96), (96, 64))
        )
        parts = (up, down, gate) if gated else (up, down)
        layer = pr.FFN.pack(*parts)
        for prune in prunes:
            assert layer(x, prune=prune).shape == (count, 64)
            assert pr.ffn(x, *parts, prune=prune).shape == (count, 64)
            assert pr.ffn(x, up, down.T.contiguous().T, prune=prune).shape == (count, 64)

    names = {one.kernel.__name__ for one in record(call, ahead("sm_90"))}
    few = count <= 4
    assert ("dots_few" if few else "dots") in names
    assert ("combine_few" if few else "combine") in names
    assert "repair" in names
