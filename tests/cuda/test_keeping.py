"""What is uploaded for masks, policies and lists of experts: once, and not while a CUDA graph is captured."""

import gc

import numpy as np
import pytest
import torch

import prunus as pr
from helpers import F32, values
from prunus.cuda import grouped, keeping
from prunus.cuda.transfer import upload


@pytest.fixture
def uploads(monkeypatch):
    """What was uploaded."""
    seen = []

    def noting(array, where):
        seen.append(array)
        return upload(array, where).clone()

    monkeypatch.setattr(keeping, "upload", noting)
    return seen


@pytest.fixture
def captured(monkeypatch):
    """A way to say that what is called now is captured."""

    def begin():
        monkeypatch.setattr(keeping, "is_captured", lambda where: True)

    yield begin
    keeping._IN_GRAPHS.clear()


def operands(rng, place, *shapes):
    return [upload(values(rng, shape, F32), place).clone() for shape in shapes]


def calls(rng, place):
    a, b = operands(rng, place, (2, 40, 24), (2, 24, 50))
    q, k, v = operands(rng, place, (2, 40, 16), (2, 40, 16), (2, 40, 16))
    x, w = operands(rng, place, (3, 24), (20, 24))
    mask = pr.BlockMask.random((40, 50), (8, 8), 0.4, rng=3)
    stack = pr.BlockMask.random((1, 40, 50), (8, 8), 0.4, rng=3)
    blocks = pr.BlockMask.random((40, 40), (16, 16), 0.5, rng=4)
    fixed, grid = pr.Fixed(np.arange(3) % 2 == 0), pr.Fixed(blocks)
    units = pr.Fixed(np.arange(5) % 2 == 0)
    return {
        "sddmm": lambda: pr.sddmm(a, b, mask).toarray(),
        "sddmm, members": lambda: pr.sddmm(a, b, stack).toarray(),
        "attention, mask": lambda: pr.attention(q, k, v, mask=blocks, blocksize=16),
        "attention, fixed": lambda: pr.attention(q, k, v, prune=fixed, blocksize=16),
        "attention, fixed blocks": lambda: pr.attention(q, k, v, prune=grid, blocksize=16),
        "linear": lambda: pr.linear(x, w, activation="relu", prune=units, branch=4).toarray(),
    }


NAMES = [
    "sddmm",
    "sddmm, members",
    "attention, mask",
    "attention, fixed",
    "attention, fixed blocks",
    "linear",
]


@pytest.mark.parametrize("name", NAMES)
def test_uploaded_once(rng, place, uploads, captured, name):
    call = calls(rng, place)[name]
    first = call()
    assert uploads
    uploads.clear()
    captured()  # from now on an upload would be an error
    torch.testing.assert_close(call(), first)
    assert not uploads


@pytest.mark.parametrize("name", NAMES)
def test_no_uploads_into_graphs(rng, place, captured, name):
    call = calls(rng, place)[name]
    captured()
    with pytest.raises(pr.PrunusError, match="call the operation once before it is captured"):
        call()


def test_kept_as_long_as_its_owner(place, uploads):
    mask = pr.BlockMask.full((8, 8), 4)
    before = len(keeping._KEPT)
    one = keeping.kept(mask, "a", place, lambda: np.arange(3))
    assert keeping.kept(mask, "a", place, lambda: np.arange(9)) is one
    assert keeping.kept(mask, "b", place, lambda: np.arange(9)).tolist() == list(range(9))
    # What it is made of is another object: made anew.
    assert keeping.kept(mask, "a", place, lambda: np.arange(2), of=uploads).tolist() == [0, 1]
    # An equal mask is another owner.
    other = mask.copy()
    assert keeping.kept(other, "a", place, lambda: np.arange(5)).tolist() == list(range(5))
    del mask, other
    gc.collect()
    assert len(keeping._KEPT) == before


def test_what_graphs_read_stays(place, captured):
    grouped.constant((1, 2, 3), "int64", place)
    captured()
    made = grouped.constant((1, 2, 3), "int64", place)
    with pytest.raises(pr.PrunusError, match="before it is captured"):
        grouped.constant((4, 5, 6), "int64", place)
    grouped._constant.cache_clear()  # as other lists of experts crowd it out
    assert any(one is made for one in keeping._IN_GRAPHS.values())


def test_what_graphs_read_outlives_its_owner(place, captured):
    mask = pr.BlockMask.full((8, 8), 4)
    keeping.kept(mask, "a", place, lambda: np.arange(3))
    captured()
    address = keeping.kept(mask, "a", place, lambda: np.arange(3)).data_ptr()
    del mask
    gc.collect()
    assert [one.data_ptr() for one in keeping._IN_GRAPHS.values()] == [address]
