"""Real file systems that are full, and a real device that fails: what was there stays, and work goes on.

Each case runs in a process of its own with a private view of mounts, so that nothing is left mounted. ext4 on
a loop device needs root; without it, or without loop devices, only tmpfs is tried.
"""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems")

SIZE = 16 << 20
KINDS = {
    "ext4": 'mkfs.ext4 -q -m 0 -O ^has_journal "$1/image" && mount -o loop "$1/image" "$1/small"',
    "tmpfs": f'mount -t tmpfs -o size={SIZE} none "$1/small"',
}

PRELUDE = """
import errno, os, sys
import numpy as np, prunus as pr
from prunus import paged

folder = sys.argv[1] + "/small"
at = lambda name: os.path.join(folder, name)

def fill(spare=0):
    "Leaves no room but for so many bytes."
    with open(at("ballast"), "wb", buffering=0) as f:
        for size in (1 << 20, 1 << 16, 1 << 12):
            try:
                while True:
                    os.posix_fallocate(f.fileno(), os.path.getsize(at("ballast")), size)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
        f.truncate(os.path.getsize(at("ballast")) // 4096 * 4096 - spare)
        os.fsync(f.fileno())

def free():
    os.unlink(at("ballast"))

def refused(call, path):
    "Calls, and sees that the error has a number and names the file."
    try:
        call()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        assert os.fsdecode(error.filename) == path, error.filename
    else:
        raise AssertionError("there was room")
"""


@pytest.fixture(params=KINDS)
def small(request, tmp_path):
    """Run a script in a process that has a small file system."""
    tool = shutil.which("unshare")
    if tool is None:
        pytest.skip("unshare is not there")
    (tmp_path / "small").mkdir()
    with open(tmp_path / "image", "wb") as f:
        f.truncate(SIZE)
    root = os.geteuid() == 0
    base = [tool, "--mount", *([] if root else ["--user", "--map-root-user"]), "sh", "-ec"]

    def run(script, timeout=120):
        line = KINDS[request.param] + ' && exec "$2" -c "$3" "$1"'
        call = [*base, line, "sh", str(tmp_path), sys.executable, PRELUDE + script]
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr

    tried = subprocess.run(
        [*base, KINDS[request.param], "sh", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no {request.param} can be mounted here: {tried.stderr.strip()}")
    run.kind = request.param
    return run


def test_a_full_disk_while_dirty_pages_are_flushed(small):
    small("""
a = paged.zeros((2048, 1024), np.float32, at("a.npy"), budget="32 MiB")
a[:256] = 1
a.flush()
fill()
for i in range(256, 1024):
    a[i] = 2
for _ in range(2):
    refused(a.flush, at("a.npy"))
    assert (np.load(at("a.npy"))[:256] == 1).all()  # what was flushed is there
    assert (a[:256] == 1).all() and (a[256:1024] == 2).all()  # and nothing is lost
b = paged.zeros((64, 1024), np.float32, sys.argv[1] + "/b.npy", pager=a.pager)
b[3] = 5
b.flush()
assert (np.load(sys.argv[1] + "/b.npy")[3] == 5).all()
free()
a.flush()
found = np.load(at("a.npy"))
assert (found[:256] == 1).all() and (found[256:1024] == 2).all() and not found[1024:].any()
print("fine")
""")


def test_a_full_disk_behind_a_callers_back(small):
    """Pages that leave a small pool cannot be written: whoever needs room is told, and nothing is lost."""
    small("""
a = paged.zeros((1024, 1024), np.float32, at("a.npy"), budget="256 KiB")
a[:64] = 1
a.flush()
fill()
done = 64
def work():
    global done
    while done < 1024:
        a[done] = done
        done += 1
refused(work, at("a.npy"))
refused(a.flush, at("a.npy"))
assert (a[:64] == 1).all()
free()
work()
a.flush()
found = np.load(at("a.npy"))
assert (found[:64] == 1).all()
assert (found[64:] == np.arange(64, 1024)[:, None]).all()
print("fine")
""")


def test_a_full_disk_while_a_file_is_saved(small):
    small(
        """
for name, value in (("m.safetensors", {"x": np.ones(1000)}), ("m.npy", np.ones(1000))):
    pr.save(at(name), value)
    before = open(at(name), "rb").read()
    fill(8192)
    more = np.zeros(1 << 19)
    refused(lambda: pr.save(at(name), {"x": more} if "tensors" in name else more), at(name))
    assert open(at(name), "rb").read() == before
    assert sorted(os.listdir(folder)) == sorted([name, "ballast"] + (["lost+found"] if lost else []))
    free()
    pr.save(at(name), {"x": more} if "tensors" in name else more)
    got = pr.open(at(name))
    assert not (got["x"] if "tensors" in name else got).load().any()
    os.unlink(at(name))
print("fine")
""".replace("lost else", 'os.path.isdir(at("lost+found")) else')
    )


def test_a_full_disk_while_rows_are_appended(small):
    small("""
a = paged.from_array(np.ones((16, 1024), np.float32), at("a.npy"), budget="32 MiB")
a.flush()
fill(64 << 10)
for _ in range(2):
    refused(lambda: a.append(np.full((512, 1024), 2, np.float32)), at("a.npy"))
    assert a.shape == (16, 1024) and (a[...] == 1).all()
    assert np.load(at("a.npy")).shape == (16, 1024)
a[3] = 5
a.flush()
free()
a.append(np.full((512, 1024), 3, np.float32))
a.flush()
found = np.load(at("a.npy"))
assert found.shape == (528, 1024)
assert (found[3] == 5).all() and (found[:3] == 1).all() and (found[16:] == 3).all()
assert os.path.getsize(at("a.npy")) == 4096 + found.nbytes
print("fine")
""")


def test_a_device_that_fails(small, tmp_path):
    """The end of a loop device's own file is cut off: the device reports EIO there."""
    if small.kind != "ext4":
        pytest.skip("tmpfs has no device")
    small("""
values = np.arange(3 << 20, dtype=np.float32).reshape(-1, 1024)
a = paged.from_array(values, at("a.npy"), budget="256 KiB")
a.flush()
os.sync()
with open(at("a.npy"), "rb") as f:
    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what the system has in memory it can read
os.truncate(sys.argv[1] + "/image", 8 << 20)
good = []
for i in range(len(values)):
    try:
        assert (a[i] == values[i]).all()
        good.append(i)
    except OSError as error:
        assert error.errno == errno.EIO and os.fsdecode(error.filename) == at("a.npy"), error
assert 0 < len(good) < len(values), len(good)
try:
    a.sum()
except OSError as error:
    assert error.errno == errno.EIO, error
else:
    raise AssertionError("a sum of what could not be read")
for i in good[::50]:
    assert (a[i] == values[i]).all()
print("fine")
""")


def test_a_full_disk_while_a_model_is_packed(small):
    """However much room there is: the file appears whole or not at all, and the next attempt succeeds."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    small(f"""
sys.path.insert(0, {tests!r})
import contextlib, io
from pathlib import Path
from prunus import llm
from prunus.cli import main
from support.llama import small

model = small(hidden_size=128, intermediate_size=512, vocab_size=2000)
model = model.folder(Path(sys.argv[1], "m"))
path = at("p.safetensors")
there = sorted(os.listdir(folder))
for room in (0, 8192, 256 << 10, 900 << 10):
    fill(room)
    refused(lambda: llm.pack(model, path), path)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["llm", "pack", str(model), path]) == 1
    assert path in said.getvalue() and len(said.getvalue().splitlines()) == 1, said.getvalue()
    assert sorted(os.listdir(folder)) == sorted([*there, "ballast"])
    free()
llm.pack(model, path)
assert os.path.getsize(path) > 1 << 20
before = open(path, "rb").read()
fill(256 << 10)
refused(lambda: llm.pack(model, path, decide="gate"), path)  # over one that is there
assert open(path, "rb").read() == before
free()
os.environ["PRUNUS_CACHE"] = at("cache")
fill(256 << 10)
with contextlib.redirect_stderr(io.StringIO()):
    assert main(["llm", "run", str(model), "--prompt", "a", "--budget", "1MiB"]) == 1
assert os.listdir(at("cache")) == []
free()
with llm.load(path, "1 MiB") as m:
    assert len(m.generate("a", 2).tokens)
print("fine")
""")
