"""``pr.open`` and ``pr.save``: what goes in comes out, whatever it is and however it lies in memory."""

import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prunus as pr
from helpers import BF16, layouts, poisoned, sparse
from prunus.paged import File, PagedBSR, Pager, pagers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64", "complex64"]
FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


def random(rng, shape, dtype):
    """Random values of any dtype."""
    values = rng.standard_normal(shape) * 50
    return (values > 0 if dtype == "bool" else values).astype(dtype)


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("dtype", [*DTYPES, BF16, *(getattr(ml_dtypes, name) for name in FLOAT8)], ids=str)
def test_every_dtype_comes_back(path, rng, dtype):
    arrays = {
        "a": random(rng, (5, 7), dtype),
        "none": random(rng, (0, 3), dtype),
        "one": random(rng, (), dtype),
    }
    pr.save(path, arrays)
    with pr.open(path) as f:
        assert f.dtypes == dict.fromkeys(f, np.dtype(dtype))
        assert f.shapes == {name: arrays[name].shape for name in f}
        for name, array in arrays.items():
            same(f[name].load(), array)


@pytest.mark.parametrize("name", list(layouts(np.zeros((2, 2)))))
@pytest.mark.parametrize("end", ["m.safetensors", "m.npy"])
def test_any_strides(tmp_path, rng, name, end):
    array = layouts(rng.standard_normal((33, 45)))[name]
    pr.save(tmp_path / end, array if end.endswith("npy") else {"a": array})
    f = pr.open(tmp_path / end)
    same((f if end.endswith("npy") else f["a"]).load(), array)


def test_what_is_larger_than_a_piece(path, rng):
    rows = rng.integers(0, 255, (3, 11 << 20), dtype=np.uint8)
    tall = rng.standard_normal((1 << 20, 3))[:, ::-1]
    pr.save(path, {"rows": rows, "tall": tall, "turned": tall.T}, checksums=1 << 20)
    with pr.open(path, verify=True) as f:
        for name, array in {"rows": rows, "tall": tall, "turned": tall.T}.items():
            same(f[name].load(), array)


@pytest.mark.parametrize("end", ["m.safetensors", "m.npy"])
def test_arrays_on_disk_stream_through(tmp_path, end):
    pr.save(tmp_path / "a.npy", np.arange(8 << 20, dtype=np.float64).reshape(1 << 13, 1 << 10))
    pager = Pager("4 MiB")
    a = pr.open(tmp_path / "a.npy", pager=pager)
    tracemalloc.start()
    try:
        pr.save(tmp_path / end, a if end == "m.npy" else {"a": a}, pager=pager)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
    f = pr.open(tmp_path / end)
    same((f if end == "m.npy" else f["a"]).load(), a.load())


def test_values_smaller_than_a_byte_are_listed(path):
    head = json.dumps({"q": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    f = pr.open(path)
    assert f.shapes == {"q": (2, 4)}
    assert f.describe("q").dtype == "float4_e2m1fn"
    with pytest.raises(pr.PrunusError, match="several to a byte"):
        f["q"]


def test_other_byte_orders_are_turned(tmp_path, path):
    big = np.arange(6, dtype=">i4").reshape(2, 3)
    pr.save(path, {"a": big})
    same(pr.open(path)["a"].load(), big.astype("<i4"))
    pr.save(tmp_path / "a.npy", big)
    same(np.load(tmp_path / "a.npy"), big.astype("<i4"))


def test_what_becomes_an_array(path):
    torch = pytest.importorskip("torch")
    bf16 = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    pr.save(path, {"list": [[1.0, 2.0]], "number": 3, "torch": torch.ones(2, 2), "bf16": bf16})
    f = pr.open(path)
    same(f["list"].load(), np.array([[1.0, 2.0]]))
    same(f["torch"].load(), np.ones((2, 2), np.float32))
    same(f["bf16"].load(), np.arange(6).reshape(2, 3).T.astype(BF16))


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("kind", ["plain", "transposed", "packed"])
def test_bsr_comes_back(path, rng, batch, kind):
    W = sparse(rng, (*batch, 50, 70), (16, 32))
    W = {"plain": W, "transposed": W.T, "packed": W.pack() if not batch else W}[kind]
    pr.save(path, {"w": W, "b": np.ones(3)}, checksums=True)
    with pr.open(path, verify=True) as f:
        assert set(f) == {"w", "b"}
        found = f["w"]
        assert isinstance(found, PagedBSR)
        assert (found.shape, found.blocksize, found.dtype) == (W.shape, W.blocksize, W.dtype)
        assert (found.nnz, found.nnzb, found.density) == (W.nnz, W.nnzb, W.density)
        assert found.mask == W.mask
        same(found.load().toarray(), W.toarray())
        assert not np.isnan(found.values.load()).any(), "padding is written as 0"
        with pytest.raises(TypeError, match=r"load\(\)"):
            np.asarray(found)
        assert f.describe("w").density == W.density


def test_bsr_with_patterns_of_their_own(path, rng):
    grid = rng.random((2, 4, 5)) < 0.4
    W = pr.BSR.from_mask(pr.BlockMask(grid, 8, shape=(2, 30, 37)), rng.standard_normal((2, 30, 37)))
    pr.save(path, {"w": W, "empty": pr.BSR((0, 5), blocksize=2)})
    f = pr.open(path)
    same(f["w"].load().toarray(), W.toarray())
    assert f["w"].density == W.density
    assert f["empty"].load().shape == (0, 5)


def test_a_file_is_saved_from_a_file(path, tmp_path, rng):
    W, x = sparse(rng, (64, 64), (16, 16), poison=False), rng.standard_normal((300, 70))
    pr.save(path, {"w": W, "x": x}, {"who": "me"})
    f = pr.open(path)
    pr.save(path, f, f.metadata)  # over itself: the open file stays what it was
    pr.save(tmp_path / "more.safetensors", {"x": f["x"], "twice": f["x"].T, "w": f["w"]})
    again, more = pr.open(path), pr.open(tmp_path / "more.safetensors")
    assert again.metadata == {"who": "me"}
    same(again["x"].load(), x)
    same(more["twice"].load(), x.T)
    same(more["w"].load().toarray(), W.toarray())


def test_expressions_are_saved(path, tmp_path, rng):
    x = rng.standard_normal((300, 70))
    pr.save(path, {"x": x})
    a = pr.open(path)["x"]
    pr.save(tmp_path / "e.safetensors", {"y": a * 2 + 1, "z": a})
    np.testing.assert_array_equal(pr.open(tmp_path / "e.safetensors")["y"].load(), x * 2 + 1)
    pr.save(tmp_path / "e.npy", a - 1)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), x - 1)


@pytest.mark.parametrize("align", [1, 8, 64, 4096, 65536])
def test_alignment(path, rng, align):
    arrays = {f"{n}": rng.integers(0, 9, n, dtype=np.int16) for n in (3, 5000, 40960, 70001)}
    pr.save(path, arrays, align=align)
    f = pr.open(path)
    for name in f:
        one = f.describe(name)
        assert one.begin % (align if one.nbytes >= align else 2) == 0
        same(f[name].load(), arrays[name])
    names = json.loads(path.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    assert any(name.startswith("__pad_") for name in names) == (align > 8)


def test_names_and_metadata_may_be_any_text(path):
    odd = {
        "": 1,
        'quote"\\': 2,
        "new\nline": 3,
        "\0": 4,
        "größe 木": 5,
        "\U0001f333": 6,
        "__pad": 7,
        "a.values": 8,
    }
    pr.save(
        path,
        {name: np.float32(value) for name, value in odd.items()},
        odd_metadata := dict.fromkeys(odd, "\0 ü"),
    )
    f = pr.open(path)
    assert {name: float(f[name].load()) for name in f} == odd
    assert f.metadata == odd_metadata


def test_a_mapping(path):
    pr.save(path, {"a": np.ones(2), "b": np.zeros((3, 4))})
    with pr.open(str(path)) as f:
        assert isinstance(f, File)
        assert (len(f), "a" in f, "c" in f, 3 in f) == (2, True, False, False)
        assert f["a"] is f["a"]
        assert "2 arrays" in repr(f)
        f.prefetch(["a", "b"])
        f.prefetch("a")
        with pytest.raises(KeyError, match="has no 'c'; it has"):
            f["c"]
        with pytest.raises(KeyError):
            f.prefetch(["nothing"])
    with pytest.raises(ValueError, match="closed"):
        f["a"]
    f.close()


def test_paths_of_every_kind(tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\xfe \n.safetensors"
    pr.save(odd, {"a": np.ones(2)})
    assert list(pr.open(odd)) == ["a"]
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe \n.safetensors"]
    long = tmp_path / ("n" * 243 + ".safetensors")
    pr.save(long, {"a": np.ones(2)})
    assert list(pr.open(long)) == ["a"]


def test_a_link_stays_and_the_mode_too(tmp_path, path):
    pr.save(path, {"a": np.zeros(2)})
    path.chmod(0o640)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path.name)
    pr.save(link, {"a": np.ones(2)})
    assert link.is_symlink()
    assert path.stat().st_mode & 0o7777 == 0o640
    same(pr.open(path)["a"].load(), np.ones(2))


def test_writing_in_place(path, tmp_path):
    pr.save(path, {"a": np.zeros((100, 100))})
    with pr.open(path, mode="r+") as f:
        f["a"][3:5] = 7
    assert pr.open(path)["a"].load().sum() == 1400
    with pytest.raises(ValueError, match="written"):
        pr.open(path)["a"][0] = 1
    pr.save(path, {"a": np.zeros(3)}, checksums=True)
    with pytest.raises(pr.PrunusError, match="checksums"):
        pr.open(path, mode="r+")
    np.save(tmp_path / "a.npy", np.zeros(5))
    a = pr.open(tmp_path / "a.npy", mode="r+")
    a[2] = 1
    a.close()
    assert np.load(tmp_path / "a.npy")[2] == 1


def test_arguments_that_do_not_fit(path, tmp_path, rng):
    npy = tmp_path / "a.npy"
    W = sparse(rng, (4, 4), (2, 2))
    pr.save(path, {"a": np.ones(2)})
    before = path.read_bytes()
    cases = [
        (TypeError, "a mapping of names", lambda: pr.save(path, np.ones(2))),
        (TypeError, "must be str", lambda: pr.save(path, {1: np.ones(2)})),
        (TypeError, "metadata must be str", lambda: pr.save(path, {}, {"a": 1})),
        (ValueError, "prunus' own", lambda: pr.save(path, {}, {"prunus.bsr": "{}"})),
        (ValueError, "keeps that name", lambda: pr.save(path, {"__metadata__": np.ones(2)})),
        (ValueError, "keeps that name", lambda: pr.save(path, {"__pad_1": np.ones(2)})),
        (ValueError, "__crc32c", lambda: pr.save(path, {"__crc32c": np.ones(2)}, checksums=True)),
        (ValueError, "w.values", lambda: pr.save(path, {"w": W, "w.values": np.ones(2)})),
        (ValueError, "power of two", lambda: pr.save(path, {}, align=1000)),
        (TypeError, "datetime64", lambda: pr.save(path, {"a": np.zeros(2, "M8[s]")})),
        (TypeError, "must be", lambda: pr.save(path, {"a": np.array(["x"])})),
        (TypeError, "must be", lambda: pr.save(path, {"a": object()})),
        (ValueError, "no complex128", lambda: pr.save(path, {"a": np.zeros(2, complex)})),
        (TypeError, "float4", lambda: pr.save(path, {"a": np.zeros(2, ml_dtypes.float4_e2m1fn)})),
        (TypeError, "masked", lambda: pr.save(path, {"a": np.ma.ones(2)})),
        (ValueError, "checksums", lambda: pr.save(path, {}, checksums="many")),
        (TypeError, "one dense array", lambda: pr.save(npy, {"a": np.ones(2)})),
        (TypeError, "one dense array", lambda: pr.save(npy, W)),
        (ValueError, "no place", lambda: pr.save(npy, np.ones(2), checksums=True)),
        (ValueError, "no place", lambda: pr.save(npy, np.ones(2), {"a": "b"})),
        (ValueError, "no float8", lambda: pr.save(npy, np.ones(2, ml_dtypes.float8_e5m2))),
        (ValueError, "mode", lambda: pr.open(path, mode="w")),
        (ValueError, "only one", lambda: pr.open(path, budget=1 << 20, pager=Pager("1 MiB"))),
        (ValueError, "MiB", lambda: pr.open(path, budget="much")),
        (FileNotFoundError, "no.safetensors", lambda: pr.open(tmp_path / "no.safetensors")),
        (FileNotFoundError, "folder", lambda: pr.save(tmp_path / "folder" / "a.npy", np.ones(2))),
        (IsADirectoryError, "folder", lambda: pr.save(tmp_path, {"a": np.ones(2)})),
    ]
    for error, words, call in cases:
        with pytest.raises(error, match=words):
            call()
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_one_pager_for_several_files(path, tmp_path):
    pager = Pager(budget="8 MiB")
    pr.save(path, {"a": np.ones(2)}, pager=pager)
    np.save(tmp_path / "b.npy", np.ones(3))
    a, b = pr.open(path, pager=pager)["a"], pr.open(tmp_path / "b.npy", pager=pager)
    assert a.pager is b.pager
    assert a.load().sum() + b.load().sum() == 5
    assert pager.budget == 8 << 20
    assert pager.stats()["bytes_read"] > 0
    assert "8.0 MiB" in repr(pager)


def index_of(folder, where, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return folder / name


def test_checkpoints_in_several_files(tmp_path, rng):
    W = sparse(rng, (64, 48), (16, 16), poison=False)
    pr.save(tmp_path / "model-1.safetensors", {"a": np.ones(2), "w": W, "stray": np.ones(1)})
    pr.save(tmp_path / "model-2.safetensors", {"b": np.zeros(3)}, checksums=True)
    parts = {f"w.{part}": "model-1.safetensors" for part in ("values", "indices", "indptr")}
    index = index_of(tmp_path, {"a": "model-1.safetensors", **parts, "b": "model-2.safetensors"})
    for at in (index, tmp_path):
        with pr.open(at) as f:
            assert set(f) == {"a", "w", "b"}
            assert f["b"].load().sum() == 0
            same(f["w"].load().toarray(), W.toarray())
            assert len(f.files) == 2
            assert not f.has_checksums
    index.unlink()
    with pr.open(tmp_path) as f:
        assert set(f) == {"a", "w", "stray", "b"}


@given(
    arrays=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda s: not s.startswith("__")
        ),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 9), max_size=4)),
        max_size=6,
    ),
    align=st.sampled_from([1, 64, 4096]),
    sums=st.sampled_from([False, True, 7]),
)
def test_random_files_come_back(tmp_path_factory, arrays, align, sums):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    given = {name: random(rng, shape, dtype) for name, (dtype, shape) in arrays.items()}
    pr.save(path, given, checksums=sums, align=align)
    with pr.open(path, verify=bool(sums)) as f:
        assert set(f) == set(given)
        for name, array in given.items():
            same(f[name].load(), array)
        assert not sums or f.verify() == []


def test_poison_is_seen_where_it_should_be(rng):
    """The helper does what tests above rely on."""
    W = poisoned(sparse(rng, (50, 70), (16, 32), poison=False))
    assert np.isnan(W.data).any()


# Names, modes and budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["npz", "h5", "hdf5", "pt", "bin", "gguf", "GGUF", "txt"])
def test_names_of_other_formats_are_not_written(tmp_path, end):
    path = tmp_path / f"a.{end}"
    for write in (
        lambda: pr.save(path, {"a": np.ones(3)}),
        lambda: pr.save(os.fsencode(path), {"a": np.ones(3)}),
        lambda: pr.paged.zeros((3,), path=path),
        lambda: pr.paged.from_array(np.ones(3), path).save(path),
    ):
        with pytest.raises(ValueError, match=r"choose a name that ends in \.safetensors, or in \.npy"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_endings_that_mean_nothing_are_free(tmp_path):
    for name in ("plain", "v1.2", "a.weights"):
        pr.save(tmp_path / name, {"a": np.ones(3)})
        assert list(pr.open(tmp_path / name)) == ["a"]
        assert pr.paged.zeros((3,), path=tmp_path / f"w-{name}").shape == (3,)


def test_npy_is_chosen_in_any_case(tmp_path):
    pr.save(tmp_path / "a.NPY", np.arange(3))
    np.testing.assert_array_equal(np.load(tmp_path / "a.NPY"), np.arange(3))


def test_working_memory_is_not_called_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    for make in (
        lambda: pr.paged.empty((3,), path=path),
        lambda: pr.paged.full((3,), 1.0, path=path),
        lambda: pr.paged.from_array(np.ones(3), path),
    ):
        with pytest.raises(ValueError, match=r"ends in \.npy, or write \.safetensors with pr\.save"):
            make()
    assert not path.exists()


def test_a_mode_in_the_place_of_the_budget(tmp_path):
    pr.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"mode='r\+'"):
        pr.open(tmp_path / "a.npy", "r+")
    with pytest.raises(ValueError, match=r"pr\.save, or by pr\.paged\.empty or pr\.paged\.zeros"):
        pr.open(tmp_path / "a.npy", mode="w")


def test_a_budget_without_memory_for_it(tmp_path, monkeypatch):
    pr.save(tmp_path / "a.npy", np.ones(3))

    def none(budget, *_):
        raise MemoryError(f"out of memory: {budget} bytes could not be allocated")

    monkeypatch.setitem(pagers._state, "backend", none)
    for make in (
        lambda: pr.open(tmp_path / "a.npy", budget="100 GiB"),
        lambda: pr.paged.open(tmp_path / "a.npy", budget="100 GiB"),
        lambda: pr.paged.Pager("100 GiB"),
    ):
        with pytest.raises(MemoryError, match=r"a budget of 100\.0 GiB.*choose a smaller budget"):
            make()


def test_files_that_are_neither(tmp_path):
    text = b"hello, these are words and no tensors\n"
    for name, data, told in (
        ("a.txt", text, "expected a safetensors or .npy file, this is neither"),
        ("a", b"x", "expected a safetensors or .npy file, this is neither"),
        ("a.npy", b"", "expected a safetensors or .npy file, this is empty"),
        ("a.safetensors", text, "header of at most"),
        ("b", (20).to_bytes(8, "little") + b'{"a": damaged}'.ljust(20), "JSON"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(pr.FormatError) as raised:
            pr.open(tmp_path / name)
        assert told in str(raised.value), raised.value
        assert str(tmp_path / name) in str(raised.value)


def test_folders_without_tensors(tmp_path):
    with pytest.raises(pr.FormatError, match="got an empty folder"):
        pr.open(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(pr.FormatError, match=r"1 files of which none ends in \.safetensors"):
        pr.open(tmp_path)


def test_a_missing_folder_is_told_once(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        pr.save(tmp_path / "none" / "a.npy", np.ones(3))
    assert str(raised.value).count("[Errno") == 1
    assert "os error" not in str(raised.value)
    assert raised.value.filename == str(tmp_path / "none" / "a.npy")
