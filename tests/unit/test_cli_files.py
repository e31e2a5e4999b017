"""The commands on files: inspect, verify, pack."""

import numpy as np
import pytest

import prunus as pr
from helpers import BF16, sparse
from prunus.cli import main


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def path(tmp_path, rng):
    path = tmp_path / "m.safetensors"
    W = sparse(rng, (50, 70), (16, 32), poison=False)
    pr.save(
        path, {"w": W, "x": rng.standard_normal((100, 40)), "k": np.int8(3)}, {"who": "me"}, checksums=4096
    )
    return path


def words(capsys):
    return capsys.readouterr().out


def test_inspect_a_file(path, capsys):
    assert main(["inspect", str(path)]) == 0
    shown = words(capsys)
    assert "3 arrays" in shown
    assert "with checksums" in shown
    assert "who: me" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "float64  100 x 40" in rows["x"]
    assert "31.2 KiB" in rows["x"]
    assert "scalar" in rows["k"]
    with pr.open(path) as f:
        assert f"{f['w'].nnzb} of 16 x 32" in rows["w"]
        assert f"{f['w'].density:.1%}" in rows["w"]
    assert "\nw:\n+---+\n|" in shown
    assert main(["inspect", "--no-pictures", str(path)]) == 0
    assert "+---+" not in words(capsys)


@pytest.mark.parametrize(
    ("shape", "blocks", "live", "lines"),
    [
        ((4, 8), 2, np.eye(2, 4, dtype=bool), ["+----+", "|++  |", "+----+"]),
        ((8, 8), 2, np.eye(4, dtype=bool), ["+----+", "|++  |", "|  ++|", "+----+"]),
        ((4, 4), 2, np.zeros((2, 2), bool), ["+--+", "|  |", "+--+"]),
        ((64, 2), 2, np.ones((32, 1), bool), ["+-+", *["|@|"] * 16, "+-+"]),
        ((0, 4), 2, np.zeros((0, 2), bool), ["(no blocks)"]),
    ],
)
def test_pictures(tmp_path, capsys, shape, blocks, live, lines):
    mask = pr.BlockMask(live, blocks, shape=shape)
    pr.save(tmp_path / "m.safetensors", {"w": pr.BSR.from_mask(mask, np.ones(shape))})
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert words(capsys).split("w:\n")[-1].splitlines() == lines


def test_a_picture_is_as_wide_as_asked(tmp_path, capsys, rng):
    mask = pr.BlockMask.random((1000, 3000), 8, 0.02, rng)
    pr.save(tmp_path / "m.safetensors", {"w": pr.BSR.from_mask(mask, np.ones((1000, 3000), np.float32))})
    assert main(["inspect", "--width", "30", str(tmp_path / "m.safetensors")]) == 0
    lines = words(capsys).split("w:\n")[-1].splitlines()
    assert {len(line) for line in lines} == {32}
    assert len(lines) == 7
    drawn = "".join(line[1:-1] for line in lines[1:-1])
    assert "@" not in drawn
    assert set(drawn) - {" "}


def test_inspect_an_array_and_what_is_none(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    assert main(["inspect", str(tmp_path / "a.npy")]) == 0
    assert "3 x 4 of float32, 48 bytes" in words(capsys)
    pr.save(tmp_path / "e.safetensors", {})
    assert main(["inspect", str(tmp_path / "e.safetensors")]) == 0
    assert "0 arrays" in words(capsys)
    (tmp_path / "t").write_text("text")
    for name in ("t", "nothing"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.startswith("python -m prunus: ")


def test_verify(path, capsys):
    assert main(["verify", str(path)]) == 0
    assert "pages are as they were written" in words(capsys)
    with pr.open(path) as f:
        at = f.describe("x").begin
    data = bytearray(path.read_bytes())
    data[at + 5000] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("tensor 'x', page 1: expected CRC-32C 0x")
    assert "1 of " in shown.err
    for k in range(8):
        data[at + 4096 * k if at + 4096 * k < len(data) - 3000 else at] ^= 2
    path.write_bytes(data)
    assert main(["verify", str(path)]) == 1


def test_verify_without_checksums(tmp_path, capsys):
    pr.save(tmp_path / "m.safetensors", {"a": np.ones(2)})
    np.save(tmp_path / "a.npy", np.ones(2))
    for name in ("m.safetensors", "a.npy"):
        assert main(["verify", str(tmp_path / name)]) == 1
        assert "no checksums" in capsys.readouterr().err


def test_pack_as_it_is(path, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["pack", str(path), str(out), "--checksums"]) == 0
    assert "3 arrays, 1 of them in blocks" in words(capsys)
    a, b = pr.open(path), pr.open(out, verify=True)
    assert a.metadata == b.metadata
    np.testing.assert_array_equal(a["x"].load(), b["x"].load())
    np.testing.assert_array_equal(a["w"].load().toarray(), b["w"].load().toarray())
    assert b.has_checksums


@pytest.mark.parametrize("density", [None, 10, 33, 100])
@pytest.mark.parametrize("blocksize", ["8", "16x32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
def test_pack_prunes_as_from_dense_does(tmp_path, rng, density, blocksize, dtype, monkeypatch):
    from prunus.paged import prune

    monkeypatch.setattr(prune, "_STRIP", 5000)  # several strips
    w = rng.standard_normal((100, 75)).astype(np.float32)
    w[16:48] = 0
    w[0, 0] = np.nan
    np.save(tmp_path / "w.npy", w)
    command = ["pack", str(tmp_path / "w.npy"), str(tmp_path / "o.safetensors"), "--blocksize", blocksize]
    command += [] if density is None else ["--density", f"{density}%"]
    assert main(command + ([] if dtype is None else ["--dtype", dtype])) == 0
    sizes = [int(n) for n in blocksize.split("x")]
    kind = {None: np.float32, "bfloat16": BF16, "float64": np.float64}[dtype]
    share = None if density is None else density / 100
    expected = pr.BSR.from_dense(w.astype(kind), blocksize=(sizes[0], sizes[-1]), density=share)
    found = pr.open(tmp_path / "o.safetensors")["w"].load()
    for part in ("indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
    assert found.data.dtype == expected.data.dtype
    assert found.data.tobytes() == expected.data.tobytes()


def test_pack_only_some(tmp_path, rng):
    given = {"a.up": rng.standard_normal((32, 32)), "a.bias": np.ones(32), "b": rng.standard_normal((32, 32))}
    given["a.ids"] = np.arange(64).reshape(8, 8)
    pr.save(tmp_path / "m.safetensors", given)
    out = tmp_path / "o.safetensors"
    command = ["pack", str(tmp_path / "m.safetensors"), str(out), "--blocksize", "16", "--dtype", "float32"]
    assert main([*command, "--names", "a.*,c"]) == 0
    f = pr.open(out)
    assert {name: f.dtypes[name].name for name in f} == {
        "a.up": "float32",
        "a.bias": "float32",
        "b": "float64",
        "a.ids": "int64",
    }
    assert f["a.up"].blocksize == (16, 16)
    np.testing.assert_array_equal(f["b"].load(), given["b"])
    assert main([*command, "--names", "a.up", "--only"]) == 0
    assert list(pr.open(out)) == ["a.up"]


def test_pack_gguf(tmp_path, rng, capsys):
    gguf = pytest.importorskip("gguf")
    path, out = tmp_path / "m.gguf", tmp_path / "o.safetensors"
    plain = {"a": rng.standard_normal((4, 64)).astype(np.float32), "h": np.ones((2, 3, 32), np.float16)}
    plain["i"] = np.arange(6, dtype=np.int32)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "test")
    for name, array in plain.items():
        writer.add_tensor(name, array)
    quantised = gguf.quants.quantize(plain["a"], kinds.Q8_0)
    writer.add_tensor("q", quantised, raw_dtype=kinds.Q8_0)
    bits = plain["a"].astype(BF16)
    writer.add_tensor("b", bits.view(np.uint8), raw_dtype=kinds.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert main(["pack", str(path), str(out)]) == 0
    f = pr.open(out)
    for name, array in {**plain, "q": gguf.dequantize(quantised, kinds.Q8_0), "b": bits}.items():
        found = f[name].load()
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert main(["inspect", str(path)]) == 1
    assert "python -m prunus pack" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:60])
    assert main(["pack", str(path), str(out)]) == 1
    assert "expected a GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (["--density", "10%"], 1),
        (["--names", "nothing*"], 1),
        (["--density", "0", "--blocksize", "4"], 2),
        (["--density", "101%", "--blocksize", "4"], 2),
        (["--density", "10", "--blocksize", "4"], 2),
        (["--density", "nan", "--blocksize", "4"], 2),
        (["--blocksize", "0"], 2),
        (["--blocksize", "4x4x4"], 2),
        (["--blocksize", "four"], 2),
        (["--dtype", "int3"], 2),
    ],
)
def test_pack_refuses(path, tmp_path, capsys, wrong, status):
    command = ["pack", str(path), str(tmp_path / "o.safetensors"), *wrong]
    if status == 2:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
    else:
        assert main(command) == 1
    assert capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


def test_pack_onto_itself(path, capsys):
    with pr.open(path) as f:
        before = f["x"].load()
    assert main(["pack", str(path), str(path)]) == 0
    with pr.open(path) as f:
        np.testing.assert_array_equal(f["x"].load(), before)
        assert not f.has_checksums


# Endings -----------------------------------------------------------------------------------------------


def refused(capsys, command):
    """Run a command that fails; return the one line that it says."""
    assert main([str(one) for one in command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_pack_writes_npy_of_one_dense_tensor(path, tmp_path, capsys, rng):
    out = tmp_path / "o.npy"
    assert main(["pack", str(path), str(out), "--names", "x", "--only", "--dtype", "float32"]) == 0
    assert "left out, as .npy has no place for them: the metadata who" in words(capsys)
    with pr.open(path) as f:
        np.testing.assert_array_equal(np.load(out), f["x"].load().astype(np.float32))
    turned = np.asfortranarray(rng.standard_normal((30, 20)))
    np.save(tmp_path / "f.npy", turned)
    assert main(["pack", str(tmp_path / "f.npy"), str(out)]) == 0
    assert "left out" not in words(capsys)
    np.testing.assert_array_equal(np.load(out), turned)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "3 tensors"),
        (["--names", "w", "--only"], "got blocks"),
        (["--checksums"], "no place for checksums"),
        (["--blocksize", "8"], "no place for blocks"),
    ],
)
def test_pack_refuses_npy_of_anything_else(path, tmp_path, capsys, more, told):
    out = tmp_path / "o.npy"
    line = refused(capsys, ["pack", path, out, *more])
    assert told in line
    assert "write .safetensors" in line
    assert not out.exists()


@pytest.mark.parametrize("end", ["npz", "h5", "pt", "bin", "gguf", "NPZ"])
def test_pack_refuses_names_of_other_formats(path, tmp_path, capsys, end):
    out = tmp_path / f"o.{end}"
    line = refused(capsys, ["pack", path, out])
    assert ".safetensors" in line
    assert ".npy" in line
    assert not out.exists()


def test_pack_says_first_that_it_cannot_write(tmp_path, capsys):
    out = tmp_path / "none" / "o.safetensors"
    assert str(out) in refused(capsys, ["pack", tmp_path / "neither", out])
    assert "this is a folder" in refused(capsys, ["pack", tmp_path / "neither", tmp_path])


@pytest.mark.parametrize("same", [["0.25", "25%"], ["1", "100%"]])
def test_a_density_is_a_share_or_per_cent(tmp_path, rng, same):
    np.save(tmp_path / "w.npy", rng.standard_normal((64, 64)))
    found = []
    for density in same:
        out = tmp_path / "o.safetensors"
        command = ["pack", str(tmp_path / "w.npy"), str(out), "--blocksize", "8", "--density", density]
        assert main(command) == 0
        found.append(pr.open(out)["w"].load())
    first, second = found
    assert first.nnzb == second.nnzb == round(64 * float(same[0]))
    np.testing.assert_array_equal(first.indices, second.indices)


def test_per_cent_without_the_sign_are_not_taken_for_a_share(path, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["pack", str(path), str(tmp_path / "o.safetensors"), "--blocksize", "8", "--density", "10"])
    assert "10 per cent are 10%" in capsys.readouterr().err
