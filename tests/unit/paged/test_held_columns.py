"""Columns of a dense operand that are made ready once, and those that would take memory without bound."""

import numpy as np
import pytest

import prunus as pr
from prunus.paged import sparse_products


@pytest.mark.parametrize("columns", [1, 5, 64, 65, 68, 69, 128, 200])
@pytest.mark.parametrize("strips", [0, 1, 2])
def test_bits_do_not_depend_on_what_is_held(tmp_path, monkeypatch, columns, strips):
    rng = np.random.default_rng(columns)

    W = pr.BSR.from_dense(rng.standard_normal((96, 160)).astype(np.float32), blocksize=16, density=0.4)
    x = rng.standard_normal((160, columns)).astype(np.float32)
    path = tmp_path / "w.safetensors"
    pr.save(path, {"w": W})
    monkeypatch.setattr(sparse_products, "_HELD", strips * 64 * 160 * 4)
    asked = []
    engine = type(pr.engines.active())
    hold = engine.hold

    def noted(self, part, *rest):
        asked.append(part.shape[1])
        return hold(self, part, *rest)

    monkeypatch.setattr(engine, "hold", noted)
    with pr.open(path, budget="1 MiB") as f:
        np.testing.assert_array_equal(f["w"] @ x, W @ x)
    assert sum(asked) <= max(strips * 64, 0) or columns <= strips * 64
