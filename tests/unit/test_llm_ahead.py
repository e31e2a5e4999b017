"""Reading ahead leaves room for what runs, and what was begun in vain is used or left."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import prunus as pr
from prunus import llm
from prunus.llm import ahead
from prunus.paged import tables
from support.llama import small


def test_what_is_begun_stays_within_the_window(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(small(num_hidden_layers=3).folder(tmp_path / "m"), path)
    with llm.load(path, "1 MiB") as m:
        window = sum(len(one.qkv) * one.qkv.pitch for one in m.weights.layers[:1]) + 1
        reads = ahead.Ahead(m.weights)
        reads._window = window
        reads.reach(0)
        begun = [table for step in reads._steps for table in step if table._begun]
        assert begun == [m.weights.layers[0].qkv]
        reads.stop()
        assert not begun[0]._begun


@pytest.mark.parametrize("most", [0, 8 << 20])
def test_a_layer_with_fewer_live_units_than_thought(most: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "_COMING", most)
    rng = np.random.default_rng(1)
    up, gate, down = (rng.standard_normal((512, 512), np.float32) for _ in range(3))
    layer = pr.FFN.pack(up, down, gate)
    layer.save(tmp_path / "f.safetensors")
    paged = pr.FFN.open(tmp_path / "f.safetensors", budget="8 MiB")
    live = np.zeros((1, 512), bool)
    live[0, ::64] = True
    x = rng.standard_normal((1, 512), np.float32)
    want = layer(x, "silu", prune=pr.Fixed(live))
    paged._bundle.begin()
    assert np.array_equal(paged(x, "silu", prune=pr.Fixed(live)), want)
    # Streams that nobody reads would keep the memory that later ones wait for.
    assert not paged._bundle._begun


# Generations that end -----------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[llm.Model]:
    path = tmp_path / "p.safetensors"
    llm.pack(small(num_hidden_layers=3, seed=1).folder(tmp_path / "m"), path)
    with llm.load(path, "1 MiB") as m:
        yield m


def waiting(m: llm.Model) -> int:
    """Count the streams that were begun and nobody reads yet."""
    every = (table for step in ahead.Ahead(m.weights)._steps for table in step)
    return sum(len(table._begun) for table in every)


def ends(how: str, m: llm.Model) -> None:
    made = m.stream(["the sea"], 40, chat=False)
    next(made)
    assert waiting(m)
    if how == "dropped":
        del made
    elif how == "closed":
        made.close()
        assert list(made) == []
        assert len(made.completions[0].tokens) == 1
    else:
        with made:
            next(made)


@pytest.mark.parametrize("how", ["dropped", "closed", "with"])
def test_what_was_begun_is_left_without_the_collector(how: str, disk: llm.Model) -> None:
    gc.disable()
    try:
        ends(how, disk)
        assert not waiting(disk)
    finally:
        gc.enable()


def test_a_generation_that_was_never_asked_is_closed(disk: llm.Model) -> None:
    made = disk.stream(["a"], 4)
    made.close()
    assert list(made) == []


def test_only_what_was_begun_here_is_left(disk: llm.Model) -> None:
    table = disk.weights.layers[0].qkv
    first, second = ahead.Ahead(disk.weights), ahead.Ahead(disk.weights)
    first.reach(0)
    begun = list(table._begun)
    second.reach(0)
    second.stop()
    assert table._begun == begun
    # Another one took it, and began it anew.
    table._reader(begun[0][1]).close()
    second.reach(0)
    again = list(table._begun)
    assert again
    assert again != begun
    first.stop()
    assert table._begun == again
    second.stop()
    assert not waiting(disk)


def test_tables_are_begun_and_left_by_many_threads(disk: llm.Model, monkeypatch) -> None:
    table = disk.weights.layers[0].qkv
    opened, made = threading.Barrier(4), []
    new = table._new_reader

    def slow(panel: int) -> object:
        made.append(panel)
        time.sleep(0.02)  # whoever looks meanwhile finds nothing begun
        return new(panel)

    monkeypatch.setattr(table, "_new_reader", slow)

    def begin() -> int | None:
        opened.wait()
        return table.begin()

    with ThreadPoolExecutor(4) as pool:
        numbers = [one.result() for one in [pool.submit(begin) for _ in range(4)]]
    assert len(made) == len(table._begun) == 1
    assert sorted(map(bool, numbers)) == [False, False, False, True]
    table.forget()
    assert not table._begun
