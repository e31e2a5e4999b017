"""Files that are cut, damaged, hostile or change under our feet, and processes that die while they save.

Every case ends in an exception that says what is wrong, or in a right answer: never in a crash, a hang,
memory beyond the file's own size, or half a file.
"""

import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import prunus as pr
from prunus.paged import output

TESTS = Path(__file__).parents[1]
# How many processes are killed while they save; PRUNUS_KILLS=200 for the long run.
KILLS = int(os.environ.get("PRUNUS_KILLS", "20"))
REFUSED = (OSError, pr.PrunusError, ValueError)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def header(text, data=0, length=None):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def tensor(**changes):
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}


def of(**tensors):
    return json.dumps(tensors)


NESTED = "[" * 100_000 + "]" * 100_000
BIG = 2**63
HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "no json": header("", 0),
    "length beyond the file": header("{}", 0, 1000),
    "length beyond the limit": header("{}", 0, 100_000_001),
    "length of 2**64 - 1": header("{}", 0, 2**64 - 1),
    "length of 2**63": header("{}", 0, BIG),
    "length inside the json": header(of(a=tensor()), 4, 10),
    "text": b"this is a file of text and nothing else\n" * 10,
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "bad utf-8": header(b'{"\xff\xfe":{}}'),
    "bad utf-8 in a string": header(b'{"a":{"dtype":"\xc3\x28","shape":[],"data_offsets":[0,0]}}'),
    "lone surrogate": header('{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', 1),
    "list": header("[]"),
    "number": header("7"),
    "null": header("null"),
    "leading space": header(" {}"),
    "byte order mark": header("\ufeff{}"),
    "two objects": header("{}{}"),
    "nul padding": header("{}\0\0\0\0"),
    "not closed": header('{"a":'),
    "nested": header('{"a":' + NESTED + "}"),
    "nested inside a tensor": header('{"a":{"x":' + NESTED + "}}"),
    "duplicate names": header('{"a":%s,"a":%s}' % ((json.dumps(tensor()),) * 2), 4),
    "duplicate names, escaped": header('{"a":%s,"\\u0061":%s}' % ((json.dumps(tensor()),) * 2), 4),
    "duplicate keys": header('{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
    "duplicate metadata": header('{"__metadata__":{"a":"1","a":"2"}}'),
    "metadata of numbers": header('{"__metadata__":{"a":1}}'),
    "metadata is a list": header('{"__metadata__":[]}'),
    "overlap": header(of(a=tensor(), b=tensor(data_offsets=[2, 6])), 6),
    "the same bytes twice": header(of(a=tensor(), b=tensor()), 4),
    "gap": header(of(a=tensor(), b=tensor(data_offsets=[8, 12])), 12),
    "gap at the start": header(of(a=tensor(data_offsets=[4, 8])), 8),
    "bytes after the last": header(of(a=tensor()), 5),
    "a byte too few": header(of(a=tensor()), 3),
    "no data": header(of(a=tensor())),
    "offsets turned round": header(of(a=tensor(data_offsets=[4, 0])), 4),
    "offsets below 0": header(of(a=tensor(data_offsets=[-4, 0])), 4),
    "offsets with fractions": header(of(a=tensor(data_offsets=[0.0, 4.0])), 4),
    "offsets beyond 2**64": header(of(a=tensor(data_offsets=[0, 2**64])), 4),
    "offsets that wrap round": header(of(a=tensor(shape=[2**64 - 1], data_offsets=[0, 2**64 - 1])), 4),
    "offsets as text": header(of(a=tensor(data_offsets="0,4")), 4),
    "three offsets": header(of(a=tensor(data_offsets=[0, 4, 4])), 4),
    "no offsets": header(of(a={"dtype": "U8", "shape": [4]}), 4),
    "shape that overflows to fit": header(of(a=tensor(shape=[2**32, 2**32, 4], data_offsets=[0, 0]))),
    "shape that overflows": header(of(a=tensor(shape=[BIG, BIG, BIG])), 4),
    "shape that overflows beside 0": header(of(a=tensor(shape=[0, BIG, BIG], data_offsets=[0, 0]))),
    "shape below 0": header(of(a=tensor(shape=[-2, -2])), 4),
    "shape of booleans": header(of(a=tensor(shape=[True])), 4),
    "shape of a thousand ones": header(of(a=tensor(shape=[1] * 1000 + [4])), 4),
    "shape too small": header(of(a=tensor(shape=[3])), 4),
    "shape too large": header(of(a=tensor(shape=[5])), 4),
    "unknown dtype": header(of(a=tensor(dtype="U3")), 4),
    "dtype in small letters": header(of(a=tensor(dtype="u8")), 4),
    "dtype with a nul": header(of(a=tensor(dtype="U8\0")), 4),
    "no dtype": header(of(a={"shape": [4], "data_offsets": [0, 4]}), 4),
    "half a byte": header(of(a=tensor(dtype="F4", shape=[3], data_offsets=[0, 1])), 1),
    "npy, no version": b"\x93NUMPY",
    "npy 9.0": b"\x93NUMPY\x09\x00" + bytes(100),
    "npy, header beyond the file": b"\x93NUMPY\x01\x00\xff\xff{}",
    "npy, header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "npy, no dictionary": b"\x93NUMPY\x01\x00\x04\x00None",
    "npy, code": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('true')\n",
    "npy, no values": b"\x93NUMPY\x01\x00\x3c\x00"
    + b"{'descr':'<f8','fortran_order':False,'shape':(9,)}".ljust(60),
    "npy, overflow": b"\x93NUMPY\x01\x00\x60\x00"
    + b"{'descr':'<f8','fortran_order':False,'shape':(4294967296,4294967296,4294967296)}".ljust(96),
    "npy, below 0": b"\x93NUMPY\x01\x00\x3c\x00"
    + b"{'descr':'<f8','fortran_order':False,'shape':(-1,)}".ljust(60),
    "gguf": b"GGUF" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(path, name):
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(pr.FormatError) as raised:
            pr.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(raised.value)
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    assert peak < 4 << 20, "nothing is allocated because a file says so"


def test_a_huge_header_is_read_or_refused(path):
    many = {f"tensor.{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(100_000)}
    path.write_bytes(header(json.dumps(many), 100_000))
    with pr.open(path) as f:
        assert len(f) == 100_000
    path.write_bytes(header('{"a":"' + "x" * (1 << 20)))
    with pytest.raises(pr.FormatError):
        pr.open(path)
    path.write_bytes(header('{"a":{"shape":[' + "0," * 500_000 + "0]}}"))
    with pytest.raises(pr.FormatError, match="dimensions"):
        pr.open(path)


def test_names_with_anything_in_them_do_no_harm(path, capsys):
    from prunus.cli import main

    odd = "\0../../etc/passwd\x1b[2J\r\n"
    path.write_bytes(header(of(**{odd: tensor()}), 4))
    with pr.open(path) as f:
        assert f[odd].load().sum() == 0
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\0" not in shown
    assert "\\x00" in shown


def blocks(**changes):
    """A file with one block-sparse array whose description is changed."""
    described = {"shape": [4, 4], "blocksize": [2, 2], **changes}
    return {"prunus": "1", "prunus.bsr": json.dumps({"w": described})}


BSR_FAULTS = {
    "no json": {"prunus": "1", "prunus.bsr": "{"},
    "nested": {"prunus": "1", "prunus.bsr": NESTED},
    "a list": {"prunus": "1", "prunus.bsr": "[1]"},
    "a number": {"prunus": "1", "prunus.bsr": '{"w": 3}'},
    "another name": {"prunus": "1", "prunus.bsr": '{"v": {"shape": [4, 4], "blocksize": [2, 2]}}'},
    "no shape": {"prunus": "1", "prunus.bsr": '{"w": {"blocksize": [2, 2]}}'},
    "shape below 0": blocks(shape=[-4, 4]),
    "shape of text": blocks(shape="44"),
    "huge shape": blocks(shape=[2**62, 2**62]),
    "one dimension": blocks(shape=[4]),
    "batch that is not there": blocks(shape=[3, 4, 4]),
    "blocks of 0": blocks(blocksize=[0, 2]),
    "other blocks": blocks(blocksize=[4, 1]),
    "other rows": blocks(shape=[40, 4]),
    "columns too few": blocks(shape=[4, 2]),
}


@pytest.mark.parametrize("name", BSR_FAULTS)
def test_descriptions_of_blocks_that_lie(path, name):
    parts = {"w.values": np.zeros((2, 2, 2)), "w.indices": np.array([0, 1]), "w.indptr": np.array([0, 1, 2])}
    write(path, parts, BSR_FAULTS[name])
    with pytest.raises(pr.FormatError), pr.open(path) as f:
        f["w"]


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        ([0, 2], [0, 1, 2]),
        ([0, -1], [0, 1, 2]),
        ([0, 1], [0, 2, 1]),
        ([0, 1], [1, 1, 2]),
        ([0, 1], [0, 1, 3]),
        ([0, 1], [0, -5, 2]),
        ([0.0, 1.0], [0, 1, 2]),
        ([[0, 1]], [0, 1, 2]),
        ([0, 1], [0, 2]),
        ([0, 2**62], [0, 1, 2]),
    ],
)
def test_patterns_that_lie(path, indices, indptr):
    parts = {"w.values": np.zeros((2, 2, 2)), "w.indices": np.array(indices), "w.indptr": np.array(indptr)}
    write(path, parts, blocks())
    with pytest.raises(pr.FormatError), pr.open(path) as f:
        f["w"]


def write(path, parts, metadata):
    """Write a safetensors file without help."""
    at, described, data = 0, {"__metadata__": metadata}, b""
    names = {"f8": "F64", "i8": "I64", "f4": "F32"}
    for name, part in parts.items():
        raw = part.tobytes()
        where = [at, at + len(raw)]
        described[name] = {
            "dtype": names[part.dtype.str[1:]],
            "shape": list(part.shape),
            "data_offsets": where,
        }
        at, data = at + len(raw), data + raw
    path.write_bytes(header(json.dumps(described)) + data)


def good(path, rng):
    W = pr.BSR.from_dense(rng.standard_normal((64, 64)), blocksize=16, density=0.3)
    pr.save(path, {"w": W, "x": rng.standard_normal((50, 30)), "i": np.arange(9)}, checksums=256)
    return path.read_bytes()


def test_a_file_cut_anywhere(path, rng, cases):
    whole = good(path, rng)
    for size in sorted({*range(12), *rng.integers(0, len(whole), 200).tolist(), len(whole) - 1}):
        path.write_bytes(whole[:size])
        with cases, pytest.raises(pr.FormatError):
            pr.open(path)


@pytest.mark.parametrize("which", ["header", "whole"])
def test_damage_anywhere(path, rng, which, cases):
    """What is damaged is refused, or read without harm; with checksums it is always noticed or harmless."""
    whole = good(path, rng)
    with pr.open(path) as f:
        before = {name: f[name].load() for name in ("x", "i")}
    end = 8 + int.from_bytes(whole[:8], "little") if which == "header" else len(whole)
    refused = 0
    for _ in range(400):
        bad = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, end))
            bad[at] = int(rng.integers(0, 256))
        path.write_bytes(bad)
        with cases:
            try:
                with pr.open(path, verify=True) as f:
                    for name, array in before.items():
                        np.testing.assert_array_equal(f[name].load(), array)
                    f["w"].load()
            except REFUSED:
                refused += 1
    assert refused > 100


def test_damaged_npy_headers(tmp_path, rng, cases):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(60.0).reshape(3, 20))
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        bad = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            bad[int(rng.integers(0, 80))] = int(rng.integers(0, 256))
        path.write_bytes(bad)
        with cases:
            try:
                assert pr.open(path).load().nbytes <= len(whole)
            except REFUSED:
                refused += 1
    assert refused > 100


def test_what_is_no_file(tmp_path):
    with pytest.raises(pr.FormatError, match="folder with safetensors files"):
        pr.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        pr.open(tmp_path / "nothing.safetensors")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        pr.open(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(OSError, match="symbolic"):
        pr.open(tmp_path / "round")
    with pytest.raises(REFUSED):
        pr.open("nul\0in.the.path")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(pr.FormatError, match="device, pipe or socket"):
            pr.open(path)


INDEXES = {
    "empty": b"",
    "no json": b"{",
    "a list": b"[]",
    "no map": b"{}",
    "map is a list": b'{"weight_map": ["a"]}',
    "bad utf-8": b'{"weight_map": {"\xff": "a"}}',
    "nested": b'{"weight_map": ' + NESTED.encode() + b"}",
    "twice": b'{"weight_map": {"a": "m.safetensors", "a": "m.safetensors"}}',
    "above": b'{"weight_map": {"a": "../m.safetensors"}}',
    "absolute": b'{"weight_map": {"a": "/etc/passwd"}}',
    "backslash": b'{"weight_map": {"a": "..\\\\m.safetensors"}}',
    "drive": b'{"weight_map": {"a": "C:m.safetensors"}}',
    "nul": b'{"weight_map": {"a": "m\\u0000.safetensors"}}',
    "number": b'{"weight_map": {"a": 3}}',
    "no name": b'{"weight_map": {"a": ""}}',
    "tensor that is not there": b'{"weight_map": {"b": "m.safetensors"}}',
    "file that is not there": b'{"weight_map": {"a": "n.safetensors"}}',
    "itself": b'{"weight_map": {"a": "model.safetensors.index.json"}}',
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_that_lie(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    pr.save(tmp_path / "m.safetensors", {"a": np.ones(2)})
    pr.save(folder / "m.safetensors", {"a": np.ones(2)})
    (folder / "model.safetensors.index.json").write_bytes(INDEXES[name])
    for at in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises((pr.FormatError, FileNotFoundError)):
            pr.open(at)


def test_one_name_in_two_files(tmp_path):
    pr.save(tmp_path / "1.safetensors", {"a": np.ones(2)})
    pr.save(tmp_path / "2.safetensors", {"a": np.ones(2)})
    with pytest.raises(pr.FormatError, match="'a' is in"):
        pr.open(tmp_path)
    for name in "xy":
        (tmp_path / f"{name}.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(pr.FormatError, match="one index"):
        pr.open(tmp_path)


def test_a_file_that_shrinks_while_it_is_open(path, tmp_path):
    pr.save(path, {"a": np.ones(1 << 18), "b": np.zeros(1 << 18)}, checksums=True)
    with pr.open(path) as f:
        a, b = f["a"], f["b"]
        os.truncate(path, 1 << 20)
        for read in (a.load, b.load, f.verify, lambda: pr.save(tmp_path / "copy.safetensors", f)):
            with pytest.raises(OSError, match=r"m\.safetensors"):
                read()
    assert not (tmp_path / "copy.safetensors").exists()
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_that_is_replaced_while_it_is_open(path):
    pr.save(path, {"a": np.ones(1000)})
    f = pr.open(path)
    a = f["a"]
    pr.save(path, {"a": np.zeros(1000)})
    # Refused, or the old values: never a mixture.
    try:
        assert a.load().sum() == 1000
    except OSError as error:
        assert "replaced" in str(error) or "changed" in str(error)  # noqa: PT017


# Saving
# -------------------------------------------------------------------------------------------------------


class Stubborn:
    """An array whose values cannot all be had."""

    dtype = np.dtype(np.float64)
    shape = (4, 1 << 20)

    def __init__(self, error):
        self.error = error

    def __getitem__(self, key):
        if key[0].start == 2:
            raise self.error
        return np.zeros(self.shape)[key]


# As if it were one of the package's arrays on disk, which are streamed.
Stubborn.__module__ = "prunus.paged.stubborn"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError(), RuntimeError()]
)
@pytest.mark.parametrize("end", ["m.safetensors", "m.npy"])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, end, error):
    path = tmp_path / end
    pr.save(path, np.ones(3) if end == "m.npy" else {"a": np.ones(3)})
    before = path.read_bytes()
    with pytest.raises(type(error)):
        pr.save(path, Stubborn(error) if end == "m.npy" else {"a": np.ones(2), "b": Stubborn(error)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [end]


@pytest.mark.parametrize("step", ["replace", "chmod", "realpath"])
def test_a_step_that_fails_leaves_what_was_there(path, tmp_path, monkeypatch, step):
    pr.save(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(output.os.path if step == "realpath" else output.os, step, fail)
    with pytest.raises(OSError, match="Input/output"):
        pr.save(path, {"a": np.zeros(3)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_source_that_gives_too_little_or_too_much(path, tmp_path):
    class Wrong(Stubborn):
        def __getitem__(self, key):
            return np.zeros(self.count)

    Wrong.__module__ = Stubborn.__module__
    for count in (1, 3 << 20):
        array = Wrong(None)
        array.count = count
        with pytest.raises(ValueError, match="expected"):
            pr.save(path, {"a": array})
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            pr.save(tmp_path / "m.safetensors", {"a": np.ones(2)})
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits on the size of files")
def test_a_file_larger_than_the_limit(path, tmp_path):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import numpy as np, prunus as pr
from support import backend
backend.use()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    pr.save({str(path)!r}, {{"a": np.ones(1 << 20)}})
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "27\n", done.stderr
    assert os.listdir(tmp_path) == []


WRITER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, {tests!r})
import numpy as np, prunus as pr
from support import backend
backend.use()
print("ready", flush=True)
for k in range(1, 10**9):
    value = {first} + k % 200
    a = np.full((3, 1 << 17), value, np.float32)
    pr.save({path!r}, {{"a": a, "b": a[:, ::2], "k": np.int64(value)}}, checksums=True)
"""


@contextmanager
def writing(code):
    """A process that saves one file after the other; it is killed in the end."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n", child.stderr.read()
        yield child
    finally:
        child.kill()
        child.communicate()


def wait(child):
    """Return what an interrupted process says; Python drops an exception that comes up in a finaliser."""
    for _ in range(10):
        try:
            return child.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
    pytest.fail("Ctrl-C does not end it")


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_interrupted_while_saving(path, tmp_path, cases):
    """Ctrl-C at a random moment: as a kill, and nothing is left behind."""
    chance = random.Random(0)
    pr.save(
        path, {"a": np.zeros((3, 1 << 17), np.float32), "b": np.zeros(1), "k": np.int64(0)}, checksums=True
    )
    for k in range(max(KILLS // 4, 1)):
        with cases:
            code = WRITER.format(tests=str(TESTS), path=str(path), first=1000 * k)
            with writing(code) as child:
                time.sleep(chance.uniform(0, 0.1))
                child.send_signal(signal.SIGINT)
                assert b"KeyboardInterrupt" in wait(child)
            with pr.open(path, verify=True) as f:
                value = int(f["k"].load())
                assert (f["a"].load() == value).all()
            assert os.listdir(tmp_path) == [path.name]


def interrupt_at(moment):
    """Return a trace function that interrupts :class:`Output` at its so-many-th line."""
    lines = itertools.count()

    def trace(frame, event, _):
        if frame.f_code.co_filename != output.__file__:
            return None
        if event in ("call", "line") and next(lines) == moment:
            raise KeyboardInterrupt
        return trace

    return trace


def test_interrupted_at_every_line_of_saving(path, tmp_path, cases):
    """Also before the first line of what tidies up: the file is an old or new one, alone in its folder."""
    value, ended, before = 0.0, False, sys.gettrace()
    pr.save(path, {"a": np.full(5000, value, np.float32)})
    for moment in range(1, 1000):
        with cases:
            try:
                sys.settrace(interrupt_at(moment))
                pr.save(path, {"a": np.full(5000, moment, np.float32)})
                ended = True
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            assert os.listdir(tmp_path) == [path.name], moment
            with pr.open(path) as f:
                found = set(f["a"].load().tolist())
            assert found == {moment} or (found == {value} and not ended)
            (value,) = found
        if ended:
            break
    assert ended
    assert moment > 40


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_killed_while_saving(path, tmp_path, cases):
    """kill -9 at a random moment: the file is the old one or the new one, and sound."""
    chance = random.Random(0)
    pr.save(
        path, {"a": np.zeros((3, 1 << 17), np.float32), "b": np.zeros(1), "k": np.int64(0)}, checksums=True
    )
    seen, longest = set(), 0.1
    for k in range(KILLS):
        with cases:
            code = WRITER.format(tests=str(TESTS), path=str(path), first=1000 * k)
            with writing(code) as child:
                time.sleep(chance.uniform(0, longest))
                child.kill()
            with pr.open(path, verify=True) as f:
                assert f.verify() == []
                value = int(f["k"].load())
                assert (f["a"].load() == value).all()
                assert (f["b"].load() == value).all()
            # A slow machine takes longer to save: nearly all would be killed while the first file is written.
            longest = min(longest * (1.5 if value in seen else 0.9), 5)
            seen.add(value)
            left = [name for name in os.listdir(tmp_path) if name != path.name]
            assert len(left) <= 1
            for name in left:
                assert name.startswith(".prunus-")
                os.unlink(tmp_path / name)
    assert len(seen) > KILLS // 4, "most were killed after a save or between two"
