"""One rule for operands: what NumPy reads as an array is taken by every operation, and the rest by none."""

import numpy as np
import pytest

import prunus as pr
from operations import NAMES, operations, plain
from prunus._arrays import as_array, is_array_like


class ByArray:
    """What other libraries' arrays are to NumPy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ByDLPack:
    """A tensor that knows no NumPy; ``device`` as DLPack numbers them."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


@pytest.mark.parametrize("form", [ByArray, ByDLPack, np.ndarray.tolist, memoryview])
@pytest.mark.parametrize("name", NAMES)
def test_every_operand_may_be_array_like(name, form):
    if form is memoryview and name.startswith("@"):
        pytest.skip("operators ask for an array's protocols, and a buffer has none of them")
    # Lists are float64, so all is.
    call = operations(np.float64)[name]
    expected = plain(call())
    for operand, value in call.operands.items():
        got = plain(call(**{operand: form(value)}))
        np.testing.assert_array_equal(got, expected, err_msg=operand)


def grid(value):
    return np.full(value.shape, "1.5")


BAD = {
    "masked": (np.ma.masked_array, TypeError, r"masked array, whose mask would be lost; pass .*filled\(0\)"),
    "objects": (
        lambda value: value.astype(object),
        TypeError,
        "must be an array of numbers.*, got dtype object",
    ),
    "text": (grid, TypeError, "must be an array of numbers.*, got dtype <U"),
    "word": (lambda value: "weights", TypeError, "must be an array of numbers.*, got str"),
    "dict": (lambda value: {}, TypeError, "must be an array of numbers.*, got dict"),
    "class": (lambda value: np.ndarray, TypeError, "must be an array of numbers.*, got type"),
    "ragged": (lambda value: [[1.0], [1.0, 2.0]], ValueError, "cannot be read as an array"),
    # Metal's memory: what says it lies on a CUDA GPU is handed to the operations there.
    "device": (lambda value: ByDLPack(value, device=8), pr.PrunusError, "expected host memory"),
    "no capsule": (lambda value: ByDLPack(None), (TypeError, AttributeError), "DLPack|dlpack"),
    "complex": (lambda value: value.astype(complex), TypeError, r"complex128.*\.astype\(np\.float32\)"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_the_rest_is_refused_by_name(name, fault):
    make, error, match = BAD[fault]
    if name == "from_dense" and fault == "complex":
        pytest.skip("blocks may hold complex numbers, products do not take them")
    if name.startswith("@") and fault in ("word", "dict", "class"):
        match = "unsupported operand"
    call = operations()[name]
    for operand, value in call.operands.items():
        # Weights may be lists of experts, of which each is looked at by itself.
        if name.startswith("moe") and operand.startswith("w_") and fault == "ragged":
            continue
        with pytest.raises(error, match=match) as caught:
            call(**{operand: make(value)})
        said = str(caught.value)
        if fault != "no capsule" and not name.startswith(("@", "from_dense")):
            assert said.startswith(operand), said


@pytest.mark.parametrize("name", NAMES)
def test_what_says_it_is_on_a_gpu_is_not_read_as_memory(name):
    call = operations()[name]
    for operand, value in call.operands.items():
        # Without a GPU there is no such device; with one, operands on two devices do not meet.
        with pytest.raises((pr.PrunusError, TypeError), match=r"cuda|device|GPU"):
            call(**{operand: ByDLPack(value, device=2)})


def test_a_required_operand_is_not_none():
    optional = {"b", "w_gate", "b_up", "b_down", "D", "z", "delta_bias", "logits", "router", "bias", "state"}
    for name, call in operations().items():
        for operand in call.operands:
            if operand in optional or (operand == "w_down" and name.startswith(("moe", "Predictor"))):
                continue
            with pytest.raises(TypeError, match=r"NoneType|is missing"):
                call(**{operand: None})


def test_memory_is_shared():
    x = np.arange(6.0).reshape(2, 3)
    for form in (ByArray, ByDLPack, memoryview, lambda array: array.view(np.recarray)):
        assert np.shares_memory(as_array(form(x), "x"), x)
        assert type(as_array(form(x), "x")) is np.ndarray
    assert as_array(x, "x") is x


def test_arrays_that_name_no_device():
    class Sharded(ByArray):
        def __dlpack_device__(self):
            raise BufferError("several devices")

    class Unreadable:
        __dlpack_device__ = Sharded.__dlpack_device__

        def __dlpack__(self, **options):
            raise BufferError("several devices")

    x = np.ones((2, 3))
    assert as_array(Sharded(x), "x") is x
    with pytest.raises(TypeError, match="x cannot be read through DLPack: several devices"):
        as_array(Unreadable(), "x")


def test_operators_defer_to_who_knows_better():
    class Lazy:
        __array_ufunc__ = None

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("never asked")

        def __rmatmul__(self, other):
            return "lazy"

    W = pr.BSR(np.eye(4), blocksize=2)
    assert W @ Lazy() == "lazy"
    assert not is_array_like(Lazy)
    assert is_array_like(ByArray(np.eye(4)))
    with pytest.raises(TypeError, match=r"x cannot be read as an array: .*toarray"):
        as_array(W, "x")
