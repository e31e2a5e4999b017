"""Patterns that learn in several processes: all of them find the same ones."""

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import prunus.torch as pt


@pytest.fixture(autouse=True)
def found(request, monkeypatch):
    """Have processes that are started find this file's functions, wherever pytest was called."""
    monkeypatch.syspath_prepend(request.config.rootpath)  # which processes take over


def trained(rank, world, path, results):
    """Train a layer on a part of each batch, and keep what became of it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    layer = pt.nn.BlockSparseLinear(40, 48, blocksize=8, density=0.3, dtype=torch.float64)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rigl = pt.learning.RigL(model, optimizer, every=2, end=100)
    source = torch.Generator().manual_seed(1)
    for _ in range(6):
        x = torch.randn(8, 40, dtype=torch.float64, generator=source)
        target = torch.randn(8, 48, dtype=torch.float64, generator=source)
        part = slice(rank * 8 // world, (rank + 1) * 8 // world)
        optimizer.zero_grad()
        (model(x[part]) - target[part]).square().mean().backward()
        optimizer.step()
        rigl.step()
    torch.save(layer.weight.detach().toarray(), f"{path}/{results}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path):
    torch.multiprocessing.spawn(trained, (2, str(tmp_path), "two"), nprocs=2)
    (tmp_path / "meet").unlink(missing_ok=True)
    torch.multiprocessing.spawn(trained, (1, str(tmp_path), "one"), nprocs=1)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("two0", "two1", "one0"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, alone)


def drawn(rank, world, path):
    """Grow at random, with random numbers that are another process's own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    layers = [pt.nn.BlockSparseLinear(40, 48, blocksize=8, density=0.3) for _ in range(2)]
    model = torch.nn.Sequential(*layers[:1], torch.nn.Linear(48, 40), *layers[1:])
    torch.manual_seed(100 + rank)
    moving = pt.learning.SET(layers[:1], None, every=1, end=10, grown="kaiming_uniform")
    rigl = pt.learning.RigL(layers[1:], None, every=1, end=10, candidates=4)
    for _ in range(2):
        model(torch.randn(3, 40)).square().sum().backward()
        moving.step()
        rigl.step()
    torch.save([layer.weight.detach().toarray() for layer in layers], f"{path}/drawn{rank}.pt")
    torch.distributed.destroy_process_group()


def test_what_is_drawn_is_the_same_in_all_processes(tmp_path):
    torch.multiprocessing.spawn(drawn, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"drawn{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
