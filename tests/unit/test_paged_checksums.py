"""Checksums: every byte that means something is covered, and the page that is damaged is named."""

from itertools import pairwise

import numpy as np
import pytest

import prunus as pr
from helpers import sparse
from prunus import _core
from prunus.paged import ChecksumError
from prunus.paged.checksums import Running


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def path(tmp_path, rng):
    path = tmp_path / "m.safetensors"
    arrays = {
        "w": sparse(rng, (50, 70), (16, 32)),
        "x": rng.standard_normal((37, 41)),
        "none": np.zeros((0, 2)),
    }
    pr.save(path, arrays, {"some": "text"}, checksums=1000)
    return path


def crc(data):
    """CRC-32C, bit by bit (reflected polynomial 0x82F63B78)."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 & -(state & 1))
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_pages_against_the_definition(rng, size):
    data = rng.integers(0, 256, size, dtype=np.uint8)
    expected = [crc(data[i : i + 64].tobytes()) for i in range(0, size, 64)]
    assert _core.crc32c_pages(data, 64).tolist() == expected
    with pytest.raises(ValueError, match="page"):
        _core.crc32c_pages(data, 0)


@pytest.mark.parametrize("cuts", [[], [1], [64], [63, 65, 66], [64, 128], [1, 2, 3, 199], [200]])
def test_pieces_of_any_size_give_the_same(rng, cuts):
    data = rng.integers(0, 256, 200, dtype=np.uint8)
    running = Running(64)
    for part in np.split(data, cuts):
        running.add(part)
    assert running.finish().tolist() == _core.crc32c_pages(data, 64).tolist()


def test_a_sound_file_is_sound(path):
    with pr.open(path, verify=True) as f:
        assert f.has_checksums
        assert f.metadata == {"some": "text"}
        assert f.verify() == []
        assert all(f[name] is not None for name in f)


def test_a_bit_anywhere_is_noticed(path, rng):
    good = path.read_bytes()
    f = pr.open(path)
    pads = [range(0)]
    tensors = {one.name: one for name in f for one in f._tensors(name)}
    table = f._parts[0].header.tensors["__crc32c"]
    covered = sorted((one.begin, one.end) for one in (*tensors.values(), table))
    for (_, end), (begin, _) in pairwise(covered):
        pads.append(range(end, begin))
    f.close()
    tried = 0
    for at in [0, 8, 9, *rng.integers(0, len(good), 300).tolist(), len(good) - 1]:
        if any(at in pad for pad in pads):
            continue
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        # Damage to the header may be such that it cannot be read at all.
        with pytest.raises(pr.FormatError), pr.open(path, verify=True) as f:  # noqa: PT012
            for name in f:
                f[name]
        header = at < covered[0][0]
        if not header:
            with pr.open(path) as f:
                found = f.verify()
            assert len(found) == 1 or at >= table.begin
            hit = [one for one in tensors.values() if one.begin <= at < one.end]
            if hit:
                assert (found[0].tensor, found[0].page) == (hit[0].name, (at - hit[0].begin) // 1000)
        tried += 1
    assert tried > 200


def test_only_what_is_taken_is_read(path):
    f = pr.open(path)
    at = f.describe("x").begin
    f.close()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pr.open(path, verify=True) as f:
        assert f["w"].load().shape == (50, 70)
        with pytest.raises(
            ChecksumError, match=r"tensor 'x', page 0: expected CRC-32C 0x[0-9a-f]{8}, got 0x"
        ):
            f["x"]


def test_files_without_checksums(tmp_path, path):
    pr.save(tmp_path / "plain.safetensors", {"a": np.ones(2)})
    with pytest.raises(pr.FormatError, match="checksums=True"):
        pr.open(tmp_path / "plain.safetensors", verify=True)
    np.save(tmp_path / "a.npy", np.ones(2))
    with pytest.raises(pr.FormatError, match="no checksums"):
        pr.open(tmp_path / "a.npy", verify=True)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"9999", "expected"),
        (b"0000", "bytes of a page"),
        (b"-100", "bytes of a page"),
        (b"1e03", "bytes of a page"),
    ],
)
def test_a_table_that_does_not_fit(path, page, words):
    data = path.read_bytes()
    assert data.count(b'"1000"') == 1
    path.write_bytes(data.replace(b'"1000"', b'"' + page + b'"'))
    with pytest.raises(pr.FormatError, match=words):
        pr.open(path, verify=True)
