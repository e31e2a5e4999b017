"""devices(): what there is, with rates that can be."""

import pytest

import prunus as pr


def test_what_there_is():
    found = {one.name: one for one in pr.devices(seconds=0.01)}
    assert next(iter(found)) == "cpu"
    for name in pr.engines.names():
        if name not in ("reference", "cuda"):
            assert name in found
    for one in found.values():
        assert one.measured != one.name.startswith("tensix:")
        assert min(one.flops.values()) > 1e6
        assert one.bytes_per_second > 1e6
        assert str(one).startswith(f"{one.name}: ")
    assert found["tensix:n150"].flops["bfloat16"] == pytest.approx(262e12, rel=0.01)
    assert found["tensix:n150"].bytes_per_second == pytest.approx(288e9)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_bad_times(bad):
    with pytest.raises(ValueError, match="positive"):
        pr.devices(seconds=bad)
