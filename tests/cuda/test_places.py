"""Which GPUs are taken, and by which tables: with a driver in plain Python."""

from types import SimpleNamespace

import pytest

import prunus as pr
from prunus.cuda import runtime


class Driver:
    """What torch tells of GPUs."""

    def __init__(self, capability=(9, 0), cuda="13.0", there=True):
        self.version = SimpleNamespace(cuda=cuda)
        self.found = SimpleNamespace(
            name="a GPU",
            major=capability[0],
            minor=capability[1],
            multi_processor_count=132,
            shared_memory_per_block_optin=232448,
        )
        self.cuda = SimpleNamespace(
            is_available=lambda: there,
            device_count=lambda: 2,
            current_device=lambda: 0,
            get_device_properties=lambda number: self.found,
        )
        self.device = lambda kind, number: (kind, number)


@pytest.fixture
def place_by(monkeypatch):
    def place(driver, index=None):
        found = driver, None, False, ("2.15", "3.9")
        monkeypatch.setattr(runtime, "libraries", lambda: found)
        return runtime.place.__wrapped__(index)

    return place


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((11, 0), "sm_100"),
        ((12, 0), "sm_80"),
        ((12, 1), "sm_80"),
    ],
)
def test_families(place_by, capability, arch):
    assert place_by(Driver(capability)).arch == arch


def test_what_is_not_taken(place_by):
    with pytest.raises(pr.PrunusError, match=r"capability 7\.5, expected 8\.0"):
        place_by(Driver((7, 5)))
    with pytest.raises(pr.PrunusError, match="other GPUs than NVIDIA's"):
        place_by(Driver((9, 4), cuda=None))
    with pytest.raises(pr.PrunusError, match="without CUDA"):
        place_by(Driver(cuda=None, there=False))
    with pytest.raises(pr.PrunusError, match="finds no GPU"):
        place_by(Driver(there=False))
    with pytest.raises(pr.PrunusError, match="there are 2"):
        place_by(Driver(), 2)
