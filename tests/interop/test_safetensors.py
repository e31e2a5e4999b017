"""Files of prunus in the safetensors library and NumPy, and theirs in prunus: equal bytes."""

import ml_dtypes
import numpy as np
import pytest

import prunus as pr
from helpers import BF16, sparse

safetensors = pytest.importorskip("safetensors")
stn = pytest.importorskip("safetensors.numpy")

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64", "complex64"]


def arrays(dtypes):
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (7,), (), (0, 4), (64, 1025), (2, 3, 4)]
    return {f"{t}.{k}": rng.integers(0, 100, s).astype(t) for t in dtypes for k, s in enumerate(shapes)}


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def padless(found):
    return {name: value for name, value in found.items() if not name.startswith("__")}


@pytest.mark.parametrize("align", [8, 4096])
@pytest.mark.parametrize("checksums", [False, True])
def test_ours_opens_there(tmp_path, align, checksums):
    path, given = tmp_path / "m.safetensors", arrays(DTYPES)
    pr.save(path, given, {"who": "prunus"}, checksums=checksums, align=align)
    found = padless(stn.load_file(path))
    assert set(found) == set(given)
    for name, array in given.items():
        same(found[name], array)
    with safetensors.safe_open(path, "numpy") as f:
        assert f.metadata()["who"] == "prunus"
        same(f.get_tensor("float32.4"), given["float32.4"])
        same(f.get_slice("float32.4")[3:5, ::2], given["float32.4"][3:5, ::2])


def test_theirs_opens_here(tmp_path):
    path, given = tmp_path / "m.safetensors", arrays(DTYPES)
    stn.save_file(given, path, {"who": "they"})
    with pr.open(path) as f:
        assert set(f) == set(given)
        assert f.metadata == {"who": "they"}
        for name, array in given.items():
            same(f[name].load(), array)


def test_theirs_may_use_names_that_we_keep(tmp_path):
    path = tmp_path / "m.safetensors"
    given = {"__pad_0": np.ones(3, np.uint8), "__crc32c": np.ones(3, np.uint32), "w.values": np.ones(2)}
    stn.save_file(given, path)
    with pr.open(path) as f:
        assert set(f) == set(given)
        assert not f.has_checksums


def test_bsr_is_made_of_tensors_that_others_read(tmp_path):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    W = sparse(np.random.default_rng(0), (64, 96), (16, 32), poison=False)
    pr.save(tmp_path / "m.safetensors", {"w": W})
    parts = stn.load_file(tmp_path / "m.safetensors")
    theirs = scipy_sparse.bsr_array(
        (parts["w.values"], parts["w.indices"], parts["w.indptr"]), shape=(64, 96)
    )
    np.testing.assert_array_equal(theirs.toarray(), W.toarray())


def test_torch_both_ways(tmp_path):
    torch = pytest.importorskip("torch")
    stt = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m.safetensors"
    floats = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
    given = {
        str(t).removeprefix("torch."): torch.arange(-6, 6).reshape(3, 4).to(t) for t in [*floats, torch.int64]
    }
    stt.save_file(given, path)
    with pr.open(path) as f:
        assert set(f) == set(given)
        for name, tensor in given.items():
            expected = np.dtype(getattr(ml_dtypes, name, None) or name)
            bits = tensor.view(torch.uint8 if expected.itemsize == 1 else tensor.dtype)
            assert f[name].dtype == expected
            raw = f[name].load().tobytes()
            assert raw == bytes(bits.contiguous().view(torch.uint8).numpy().tobytes())
    ours = {name: pr.open(path)[name].load() for name in given}
    pr.save(path, ours, checksums=True)
    found = padless(stt.load_file(path))
    assert set(found) == set(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_model_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    stt = pytest.importorskip("safetensors.torch")
    model = torch.nn.Sequential(torch.nn.Linear(65, 33), torch.nn.ReLU(), torch.nn.Linear(33, 7))
    state = model.state_dict()
    stt.save_file(state, tmp_path / "m.safetensors")
    f = pr.open(tmp_path / "m.safetensors")
    pr.save(tmp_path / "n.safetensors", f)
    assert {n: t.tolist() for n, t in padless(stt.load_file(tmp_path / "n.safetensors")).items()} == {
        n: t.tolist() for n, t in state.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (64, 1025), (2, 3, 4)])
def test_npy_both_ways(tmp_path, dtype, order, shape):
    given = np.asarray(np.random.default_rng(0).integers(0, 100, shape).astype(dtype), order=order)
    np.save(tmp_path / "theirs.npy", given)
    found = pr.open(tmp_path / "theirs.npy").load()
    same(np.ascontiguousarray(found).reshape(shape), np.ascontiguousarray(given).reshape(shape))
    pr.save(tmp_path / "ours.npy", given)
    again = np.load(tmp_path / "ours.npy")
    same(again, given)
    assert again.flags.f_contiguous == given.flags.f_contiguous
    assert np.load(tmp_path / "ours.npy", mmap_mode="r").offset % 4096 == 0


def test_bfloat16_in_npy(tmp_path):
    given = np.arange(10).astype(BF16)
    np.save(tmp_path / "theirs.npy", given)
    same(pr.open(tmp_path / "theirs.npy").load(), given)
    pr.save(tmp_path / "ours.npy", given)
    raw = np.load(tmp_path / "ours.npy")
    assert raw.dtype == "V2"
    same(raw.view(BF16), given)
    np.save(tmp_path / "again.npy", raw)  # NumPy calls it |V2 now
    same(pr.open(tmp_path / "again.npy").load(), given)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy(tmp_path, version):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(6.0).reshape(2, 3), version)
    np.testing.assert_array_equal(pr.open(tmp_path / "a.npy").load(), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, [("a", "f4"), ("b", "i2")]), "structured"),
        (np.array(["text"]), "not supported"),
        (np.zeros(2, ">f8"), "big-endian.*newbyteorder"),
        (np.zeros(2, "M8[ns]"), "not supported"),
        (np.zeros(2, np.longdouble), "not supported"),
        (np.zeros(2, ml_dtypes.float8_e5m2), "not supported"),
        (np.array([{}], object), "not supported"),
    ],
)
def test_npy_files_that_are_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(pr.FormatError, match=words):
        pr.open(tmp_path / "a.npy")


def test_other_formats_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(pr.FormatError, match="zip archive"):
        pr.open(tmp_path / "a.npz")
