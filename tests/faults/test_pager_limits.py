"""What the system refuses a pager, and what programs do to it.

Descriptors, locked memory and io_uring may be refused. Handlers of signals come back to what waits; files are
closed, made anew, opened twice, cut and given odd names.
"""

import errno
import gc
import os
import sys

import numpy as np
import pytest

import prunus as pr
from helpers import run_python
from prunus import paged

_core = pytest.importorskip("prunus._core")

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def fine(script, *arguments, **how):
    status, out, error = run_python(script, *map(str, arguments), timeout=120, **how)
    assert (status, out.strip()) == (0, "fine"), error


# What the system refuses
# -------------------------------------------------------------------------------------------------------

NO_RING = """
import ctypes, os, sys
import numpy as np

def deny(number):
    "Lets the system refuse io_uring_setup with an error from now on."
    class Filter(ctypes.Structure):
        _fields_ = [
            ("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)
        ]
    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
    rules = (Filter * 4)(
        Filter(0x20, 0, 0, 0),               # the number of the call
        Filter(0x15, 0, 1, 425),             # io_uring_setup
        Filter(0x06, 0, 0, 0x50000 | number),  # fails with this error
        Filter(0x06, 0, 0, 0x7FFF0000),      # all others are allowed
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.addressof(Program(4, rules)), 0, 0):
        print("no seccomp"), sys.exit(0)
"""


@linux
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM], ids=errno.errorcode.get)
def test_io_uring_is_denied(tmp_path, number):
    values = np.random.default_rng(0).standard_normal((300, 1000))
    np.save(tmp_path / "x.npy", values)
    status, out, error = run_python(
        NO_RING
        + f"""
deny({number})
import prunus as pr
from prunus import _core
a = pr.paged.open(sys.argv[1], mode="r+", budget="1 MiB")
want = np.load(sys.argv[1])
assert (a[::-7] == want[::-7]).all() and abs(a.sum() - want.sum()) < 1e-9
a[5] = 3
a.flush()
assert (np.load(sys.argv[1])[5] == 3).all()
file = _core.Pager(1 << 20).open(sys.argv[1], "r")
assert file.engine in ("direct", "buffered"), file.engine
assert file.engine == "buffered" or os.strerror({number}) in file.why, file.why
try:
    _core.Pager(1 << 20, "io_uring").open(sys.argv[1], "r")
except OSError as error:
    assert sys.argv[1] == os.fsdecode(error.filename) and "refused" in str(error), error
else:
    raise AssertionError("a ring was made")
print("fine")
""",
        str(tmp_path / "x.npy"),
        timeout=120,
    )
    if out.strip() == "no seccomp":
        pytest.skip("seccomp is not to be had here")
    assert (status, out.strip()) == (0, "fine"), error


@linux
def test_no_descriptors_for_a_ring_is_not_for_ever(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.arange(5000.0))
    fine(
        """
import os, resource, sys
import numpy as np
from prunus import _core
pager = _core.Pager(1 << 20)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
most = max(map(int, os.listdir("/proc/self/fd")))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, limits[1]))
except OSError:
    pass
os.close(held.pop())  # one is left, for the file
file = pager.open(sys.argv[1] + "/a.npy", "r")
assert file.engine != "io_uring" and len(file.read(0, 1000)) == 1000
try:
    pager.open(sys.argv[1] + "/b.npy", "r")
except OSError as error:
    assert error.errno == 24 and os.fsdecode(error.filename) == sys.argv[1] + "/b.npy"
else:
    raise AssertionError("more files than descriptors")
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
later, new = (p.open(sys.argv[1] + "/b.npy", "r") for p in (pager, _core.Pager(1 << 20)))
assert later.engine == new.engine, (later.engine, later.why, new.engine)
assert file.read(0, 1000) == later.read(0, 1000)
print("fine")
""",
        tmp_path,
    )


@linux
def test_no_locked_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(50_000.0))
    fine(
        """
import ctypes, resource, sys
import numpy as np, prunus as pr
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
# whoever may do everything may lock memory: give that up
libc = ctypes.CDLL(None, use_errno=True)
header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capset(header, none) == 0
a = pr.paged.open(sys.argv[1], mode="r+", budget="256 KiB")
assert a.sum() == sum(range(50_000))
a[::2] = 0
a.flush()
assert np.load(sys.argv[1]).sum() == sum(range(1, 50_000, 2))
print("fine")
""",
        tmp_path / "x.npy",
    )


# Handlers of signals
# -------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("what", ["next(reader)", "reader.close()", "writer.panel()", "writer.close()"])
def test_a_handler_that_comes_back(tmp_path, what):
    """A handler that uses the reader or writer that waits is refused; it does not wait for itself."""
    fine(
        f"""
import signal, sys, threading
from prunus import _core
path = sys.argv[1]
open(path, "wb").write(bytes(1 << 20))
pager = _core.Pager(1 << 16)
segment = pager.open(path, "r+").segment(0, 1 << 20, 8192)
reader, writer = segment.reader(0, 1 << 19, 4096), segment.writer(1 << 19, 1 << 20, 4096)
seen, kept = [], []

def handler(number, frame):
    try:
        {what}
        seen.append("done")
    except ValueError as error:
        seen.append(str(error))

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
try:
    # keeps all panels, so that in the end the call waits for room, which is never had
    while True:
        if {what.startswith("reader") or what.startswith("next")}:
            kept.append(next(reader)[1])
        else:
            panel = writer.panel()
            panel[:] = 1
            kept.append(panel)
            writer.put()
except (ValueError, StopIteration):
    pass
signal.setitimer(signal.ITIMER_REAL, 0)
assert any("handler" in text for text in seen), seen
kept.clear()
reader.close()
writer.close()
print("fine")
""",
        tmp_path / "x",
    )


@posix
def test_ctrl_c_in_a_long_scan_and_in_the_sort_of_many_places(tmp_path):
    """A signal ends the call, and the array can be used afterwards."""
    fine(
        """
import os, signal, sys, threading, time
import numpy as np, prunus as pr
signal.signal(signal.SIGINT, signal.default_int_handler)
a = pr.paged.zeros((1 << 26,), np.float64, sys.argv[1], budget="4 MiB")  # holes: no disk is filled
places = np.random.default_rng(0).permutation(1 << 24)
for call in (a.sum, lambda: a.std(), lambda: a[places], lambda: a.__setitem__(places, 1.0)):
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    try:
        while True:
            call()
            if time.monotonic() - begun > 60:
                raise AssertionError("it cannot be stopped")
    except KeyboardInterrupt:
        pass
    assert (a[:3] >= 0).all()
print("fine")
""",
        tmp_path / "x.npy",
    )


# Files that are closed, made anew, opened twice
# -------------------------------------------------------------------------------------------------------


def test_a_closed_array_is_refused(tmp_path):
    paged.from_array(np.arange(20_000.0).reshape(100, 200), tmp_path / "a.npy").flush()
    W = pr.BSR.from_dense(np.eye(64, dtype=np.float32), blocksize=16)
    pr.save(tmp_path / "m.safetensors", {"x": np.arange(10.0), "w": W})
    a = pr.open(tmp_path / "a.npy", mode="r+")
    view, lazy, segment = a.T, a + 1, a._store.segment
    with pr.open(tmp_path / "m.safetensors") as f:
        x, w = f["x"], f["w"]
    reader = segment.reader(0, 8000, 4096)
    a.close()
    again = pr.open(tmp_path / "a.npy")
    calls = {
        "index": lambda: a[3],
        "lazy": lazy.load,
        "view": lambda: view[0],
        "write": lambda: a.__setitem__(3, 1.0),
        "load": a.load,
        "sum": a.sum,
        "flush": a.flush,
        "append": lambda: a.append(np.zeros((1, 200))),
        "panel": lambda: next(reader),
        "dense of a file": x.load,
        "blocks of a file": lambda: w @ np.ones((64, 2), np.float32),
    }
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            assert "closed" in str(error), (name, error)  # noqa: PT017
        else:
            pytest.fail(f"{name}: a closed file was used")
    reader.close()
    a._store.file.close()  # once more does no harm
    assert again[3].sum() == np.arange(600, 800).sum()


@posix
@pytest.mark.parametrize("same", [True, False], ids=["one pager", "two pagers"])
def test_a_new_file_over_one_that_is_open(tmp_path, same):
    """What was not flushed of the old array never ends up in the new one."""
    path = tmp_path / "a.npy"
    pager = paged.Pager("1 MiB")
    old = paged.zeros((64, 1024), np.float32, path, pager=pager)
    old[...] = 1
    old[::3] = 2
    path.chmod(0o640)
    new = paged.zeros((64, 1024), np.float32, path, **({"pager": pager} if same else {"budget": "1 MiB"}))
    new[5] = 7
    old._store.segment.flush()
    new.flush()
    want = np.zeros((64, 1024), np.float32)
    want[5] = 7
    np.testing.assert_array_equal(new[...], want)
    np.testing.assert_array_equal(np.load(path), want)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="taken its place") as raised:
        old.sum()
    assert raised.value.errno == errno.ESTALE
    del old
    gc.collect()
    np.testing.assert_array_equal(np.load(path), want)
    assert os.listdir(tmp_path) == ["a.npy"]


def test_a_file_that_is_opened_to_read_and_then_to_write(tmp_path):
    """Who opened it first shares nothing with who writes: it has old values, or is told that they changed."""
    path = tmp_path / "a.npy"
    paged.from_array(np.zeros((64, 1024), np.float32), path).flush()
    pager = paged.Pager("1 MiB")
    first = paged.open(path, pager=pager)
    assert first.sum() == 0
    writer = paged.open(path, "r+", pager=pager)
    writer[...] = 1
    try:
        assert first.sum() in (0, 64 * 1024)
    except OSError as error:
        assert error.errno == errno.ESTALE  # noqa: PT017
    writer.flush()
    os.utime(path, ns=(1, 1))  # as a coarse clock may not tell the two times apart
    with pytest.raises(OSError, match="was written to"):
        first.sum()
    assert paged.open(path, pager=pager).sum() == 64 * 1024
    # whoever opens it while it is open to write sees every write at once
    reader = paged.open(path, pager=pager)
    writer[3, 5] = 9
    assert reader[3, 5] == 9


def test_errors_of_short_files_have_numbers_and_names(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100_000))
    file = _core.Pager(1 << 20).open(tmp_path / "x", "r")
    segment = file.segment(0, 100_000, 4096)
    os.truncate(tmp_path / "x", 50_000)
    out = np.zeros((1, 100), np.uint8)
    for call in (
        lambda: segment.gather(np.array([60_000]), 100, out),
        lambda: file.read(99_000, 100),
        lambda: [None for _ in segment.reader(0, 100_000, 32 << 10)],
        lambda: file.read(99_999, 2),
    ):
        with pytest.raises(OSError, match="expected") as raised:
            call()
        assert raised.value.errno == errno.EIO
        assert os.fsdecode(raised.value.filename) == str(tmp_path / "x")
    segment.gather(np.array([49_000]), 100, out)


@posix
@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"new\nline", b" ", b"'\"$`", "\u00e9\u2603\U0001f409".encode(), b"a" * 250]
)
def test_paths_of_any_bytes(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    a = paged.from_array(np.arange(2000.0), os.fsdecode(path))
    a.flush()
    for given in (path, os.fsdecode(path)):
        np.testing.assert_array_equal(pr.open(given).load(), np.arange(2000.0))
    os.symlink(path, os.path.join(os.fsencode(tmp_path), b"link"))
    b = pr.open(tmp_path / "link", mode="r+")
    b[0] = 5
    b.flush()
    assert pr.open(path)[0] == 5
    pr.save(path + b".safetensors"[: 255 - len(name)], {"x": np.arange(3)})
    with pr.open(path + b".safetensors"[: 255 - len(name)]) as f:
        assert f["x"].load().tolist() == [0, 1, 2]


@linux
def test_files_that_may_only_be_read(tmp_path):
    fine(
        """
import ctypes, errno, os, sys
import numpy as np, prunus as pr
folder = sys.argv[1] + "/folder"
os.mkdir(folder)
np.save(folder + "/a.npy", np.arange(3000.0))
pr.save(folder + "/m.safetensors", {"x": np.arange(5)})
for name in os.listdir(folder):
    os.chmod(folder + "/" + name, 0o400)
os.chmod(folder, 0o500)
# root may write anywhere until it gives that up
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
assert pr.open(folder + "/a.npy").sum() == sum(range(3000))
for call in (
    lambda: pr.open(folder + "/a.npy", mode="r+"),
    lambda: pr.paged.zeros(5, path=folder + "/a.npy"),
    lambda: pr.paged.zeros(5, path=folder + "/b.npy"),
    lambda: pr.save(folder + "/m.safetensors", {"x": np.arange(6)}),
):
    try:
        call()
    except PermissionError as error:
        assert error.errno == errno.EACCES and os.fsdecode(error.filename).startswith(folder), error
    else:
        raise AssertionError("it was written")
with pr.open(folder + "/m.safetensors") as f:
    assert f["x"].load().tolist() == list(range(5))
try:
    pr.open(folder + "/a.npy")[0] = 1
except (ValueError, TypeError, OSError):
    pass
else:
    raise AssertionError("it was written")
assert sorted(os.listdir(folder)) == ["a.npy", "m.safetensors"]
os.chmod(folder, 0o700)
print("fine")
""",
        tmp_path,
    )
