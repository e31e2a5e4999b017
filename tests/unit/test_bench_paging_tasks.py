"""What ``bench paging`` times, at small size on a pager in plain Python: it runs and finds wrong results."""

import os
import sys

import numpy as np
import pytest

from prunus.bench.paging import layers, rivals, tasks
from prunus.bench.paging.data import HEADER, Data, square
from prunus.bench.paging.meter import Meter
from prunus.bench.peers import WrongResultError
from prunus.paged.pagers import set_backend
from support.plain_pager import Pager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bench paging is for Linux")

SIZE = 1 << 20
BUDGET = 1 << 17


@pytest.fixture(autouse=True)
def plain_pager():
    set_backend(Pager)
    yield
    set_backend(None)


@pytest.fixture
def arguments(tmp_path):
    made = Data.make(tmp_path / "data.npy", SIZE, 1)
    other = Data.make(tmp_path / "other.npy", BUDGET, 2)
    made.reshape(*square(SIZE))
    base = {"path": made.path, "other": other.path, "total": made.total, "budget": BUDGET, "seed": 0}
    return base | {"data": made, "share": 0.25}


def reshape(arguments, columns):
    arguments["data"].reshape(SIZE // 4 // columns, columns)


def test_scan(arguments):
    for fresh in (False, True):
        found = tasks.scan(arguments | {"fresh": fresh}, Meter())
        assert (found.used, found.blocks) == (SIZE, 1)
        assert SIZE <= found.read < 1.1 * SIZE
    with pytest.raises(WrongResultError, match="sum"):
        tasks.scan(arguments | {"total": arguments["total"] * 1.001}, Meter())


def test_random_rows(arguments):
    reshape(arguments, 1024)
    found = tasks.random(arguments, Meter())
    assert (found.used, found.blocks) == (SIZE // 4, 64)
    assert found.amplification == pytest.approx(1, abs=0.1)
    first, again = (tasks.chosen(arguments | {"seed": seed}, 256) for seed in (0, 0))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, tasks.chosen(arguments | {"seed": 1}, 256))
    assert len(set(first.tolist())) == 64


def test_passes(arguments):
    reshape(arguments, 1024)
    found = tasks.passes(arguments | {"passes": 3}, Meter())
    assert found.series["passes"] == pytest.approx([1, 1, 1], abs=0.1)  # this pager keeps nothing
    assert len(found.series["rates"]) == 3


def test_revisit(arguments):
    reshape(arguments, 1024)
    found = tasks.revisit(arguments | {"trace": "skewed", "budget": 16 << 12}, Meter())
    assert found.series["hits"] == pytest.approx([0], abs=0.1)
    with pytest.raises(ValueError, match="trace of"):
        tasks.revisit(arguments | {"trace": "cyclic", "budget": 32 << 20}, Meter())


@pytest.mark.parametrize("columns", [1, 64])
def test_product(arguments, columns):
    found = tasks.product(arguments | {"columns": columns}, Meter())
    assert found.used == SIZE
    there = tasks.product_in_memory(arguments | {"columns": columns, "shape": square(SIZE)}, Meter())
    assert there.used == SIZE
    assert there.seconds > 0


def test_add(arguments, tmp_path):
    out = Data.make(tmp_path / "out.npy", SIZE // 2, 3)
    columns = square(SIZE)[1]
    out.reshape(SIZE // 8 // columns, columns)
    found = tasks.add(arguments | {"out": out.path}, Meter())
    assert found.used == SIZE
    values = np.load(arguments["path"]).ravel()[: SIZE // 8]
    assert np.array_equal(np.load(out.path).ravel(), values + np.float32(1))


def test_wrong_values_are_found(arguments):
    a = np.load(arguments["path"])
    rows = np.arange(len(a))
    tasks.check_rows(arguments["path"], rows, a)
    x = tasks.operand(a.shape[1], 3)
    tasks.check_product(arguments["path"], x, a @ x)
    with open(arguments["path"], "r+b") as file:  # the first value, which is looked at
        file.seek(HEADER)
        file.write(os.urandom(4)[:3] + b"\x47")
    with pytest.raises(WrongResultError, match="row 0"):
        tasks.check_rows(arguments["path"], rows, a)
    with pytest.raises(WrongResultError, match="row 0"):
        tasks.check_product(arguments["path"], x, a @ x)


def test_maps(arguments):
    assert rivals.memmap_scan(arguments, Meter()).used == SIZE
    assert rivals.memmap_product(arguments | {"columns": 2}, Meter()).used == SIZE
    reshape(arguments, 1024)
    found = rivals.memmap_random(arguments | {"seconds": 60.0}, Meter())
    assert (found.used, found.blocks) == (SIZE // 4, 64)
    stopped = rivals.memmap_random(arguments | {"seconds": 0.0}, Meter())
    assert 0 < stopped.blocks <= 64


def test_tensorstore(arguments, tmp_path):
    pytest.importorskip("tensorstore")
    more = {"store": str(tmp_path / "a.zarr"), "values": SIZE // 16, "mode": "default"}
    made = rivals.tensorstore_make(arguments | more, Meter())
    total = made.series["total"][0]
    assert rivals.tensorstore_scan(arguments | more | {"total": total}, Meter()).used == SIZE // 4
    with pytest.raises(WrongResultError, match="sum"):
        rivals.tensorstore_scan(arguments | more | {"total": 2 * total}, Meter())


def test_names_of_tasks_are_one_set():
    names = [*tasks.TASKS, *layers.TASKS, *rivals.TASKS]
    assert len(names) == len(set(names))
