"""Reading ahead leaves room for what runs, and what was begun in vain is used or left."""

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
