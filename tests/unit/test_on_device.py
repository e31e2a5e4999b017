"""What public operations ask first: whether an operand lives on a GPU."""

import numpy as np
import pytest

import prunus as pr
from prunus._device import on_device


class Elsewhere:
    """An array of another library; ``device`` as DLPack numbers them."""

    asked = 0

    def __init__(self, device):
        self.device = device

    def __dlpack_device__(self):
        type(self).asked += 1
        if self.device is None:
            raise BufferError("on no one device")
        return self.device, 0


@pytest.mark.parametrize(
    "value",
    [None, 1.0, np.ones(3), np.float32(1), [], [[1.0, 2.0]], (np.ones(2),), Elsewhere(1), Elsewhere(None),
     Elsewhere, np.ndarray, pr.BSR(np.eye(4), blocksize=2), {}, "x"],
)  # fmt: skip
def test_what_is_the_hosts(value):
    assert not on_device(value)
    assert not on_device(value, value)


def test_what_is_on_a_gpu():
    there = Elsewhere(2)
    assert on_device(there)
    assert on_device(np.ones(2), None, there)
    assert on_device([there, there])
    assert on_device([(there,)])


def test_lists_are_not_walked():
    class Number(Elsewhere):
        asked = 0

    numbers = [Number(1) for _ in range(1000)]
    assert not on_device(numbers, [numbers] * 1000)
    assert Number.asked == 2


def test_tensors_in_host_memory_are_the_hosts():
    torch = pytest.importorskip("torch")
    assert not on_device(torch.ones(2), torch.nn.Parameter(torch.ones(2)))
