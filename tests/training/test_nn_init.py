"""Initial values keep variances, whatever the pattern."""

import math

import pytest
import torch

import prunus as pr
import prunus.torch as pt

init = pt.nn.init
UNEVEN = [0.02, 0.1, 0.5, 1.0]


def uneven(shape=(512, 1024), block=(16, 16)):
    """Weights whose rows of blocks have very different numbers of inputs."""
    torch.manual_seed(0)
    down, across = shape[0] // block[0], shape[1] // block[1]
    shares = torch.tensor(UNEVEN).repeat_interleave(down // len(UNEVEN))
    grid = torch.rand(down, across) < shares[:, None]
    grid[:, 0] = True
    return pt.BSR.zeros(pr.BlockMask(grid.numpy(), block), dtype=torch.float64)


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
@pytest.mark.parametrize("transposed", [False, True])
def test_variance_forward_is_kept_in_each_row(name, transposed):
    w = uneven(shape=(1024, 512) if transposed else (512, 1024))
    w = w.T if transposed else w
    getattr(init, name)(w, nonlinearity="linear")
    x = torch.randn(w.shape[1], 4000, dtype=torch.float64)
    variance = (w @ x).var(1)
    for rows in variance.chunk(len(UNEVEN)):
        assert abs(float(rows.mean()) - 1) < 0.15


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_"])
def test_variance_backward_is_kept_in_each_column(name):
    w = uneven().T
    getattr(init, name)(w, mode="fan_out", nonlinearity="linear")
    grad = torch.randn(w.shape[0], 4000, dtype=torch.float64)
    assert abs(float((w.T @ grad).var(1).mean()) - 1) < 0.1


def test_relu_has_its_gain():
    w = init.kaiming_normal_(uneven(), nonlinearity="relu")
    x = torch.randn(w.shape[1], 4000, dtype=torch.float64).relu()
    assert abs(float((w @ x).square().mean()) / float(x.square().mean()) - 2) < 0.2


@pytest.mark.parametrize("name", ["xavier_uniform_", "xavier_normal_"])
def test_xavier_of_a_dense_pattern_is_torch_s(name):
    w = pt.BSR.zeros(pr.BlockMask.full((300, 200), 16), dtype=torch.float64)
    getattr(init, name)(w, gain=2.0)
    dense = getattr(torch.nn.init, name)(torch.empty(300, 200, dtype=torch.float64), gain=2.0)
    assert abs(float(w.toarray().std() / dense.std()) - 1) < 0.02
    if "uniform" in name:
        assert float(w.data.abs().max()) <= 2 * math.sqrt(6 / 500)


def test_fans_count_what_is_there():
    grid = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    w = pt.BSR.zeros(pr.BlockMask(grid.numpy(), (4, 8), shape=(10, 20)))
    fan_in, fan_out = init.fans(w)
    assert fan_in.tolist() == [16, 16, 4]
    assert fan_out.tolist() == [4, 4, 2]
    assert [one.tolist() for one in init.fans(w.T)] == [fan_out.tolist(), fan_in.tolist()]


def test_members_of_a_batch():
    masks = pr.BlockMask.random((3, 40, 24), 8, 0.5, 1)
    w = init.kaiming_normal_(pt.BSR.zeros(masks, dtype=torch.float64))
    fan_in, fan_out = init.fans(w)
    starts = torch.from_numpy(masks.indptr.copy()).long()
    at = 0
    for member in range(3):
        one = pt.BSR.zeros(masks[member])
        count = one.nnzb
        assert int(starts[member, -1] - starts[member, 0]) == count
        a, b = init.fans(one)
        assert fan_in[at : at + count].tolist() == a.tolist()
        assert fan_out[at : at + count].tolist() == b.tolist()
        at += count
    shared = pt.BSR.zeros(pr.BlockMask.random((40, 24), 8, 0.5, 1), dtype=torch.float64)
    both = pt.BSR((shared.data.repeat(5, 1, 1, 1), shared.indices, shared.indptr), (5, 40, 24))
    assert float(init.kaiming_normal_(both).data.std()) > 0


@pytest.mark.parametrize("name", ["kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"])
def test_padding_is_zero(name):
    w = pt.BSR.zeros(pr.BlockMask.full((70, 50), (16, 8)))
    w.data.fill_(torch.nan)
    getattr(init, name)(w)
    blocks = w.data.reshape(5, 7, 16, 8)
    assert blocks[-1, :, 6:].abs().max() == blocks[:, -1, :, 2:].abs().max() == 0
    assert (w.toarray() != 0).all()


def test_layers_begin_as_torch_s_with_the_inputs_that_rows_have():
    torch.manual_seed(0)
    layer = pt.nn.BlockSparseLinear(1024, 512, blocksize=16, density=0.25)
    bound = 1 / math.sqrt(256)
    for part in (layer.values.detach(), layer.bias.detach()):
        assert float(part.abs().max()) <= bound
        assert abs(float(part.std()) / (bound / math.sqrt(3)) - 1) < 0.1


def test_the_same_generator_gives_the_same_layer():
    def make():
        source = torch.Generator().manual_seed(3)
        return pt.nn.BlockSparseLinear(40, 30, blocksize=8, density=0.5, generator=source).state_dict()

    for a, b in zip(make().values(), make().values(), strict=True):
        assert torch.equal(a, b)


def test_what_is_no_weight_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.init"):
        init.kaiming_uniform_(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="got Linear"):
        init.xavier_uniform_(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="'fan_in' or 'fan_out'"):
        init.kaiming_uniform_(uneven(), mode="fan_up")
