"""The compiled pager with what Python adds to it: views that outlive their panels, its lock, and forks."""

import os

import numpy as np
import pytest

from helpers import run_python

_core = pytest.importorskip("prunus._core")


def test_a_view_that_outlives_its_panel_changes_no_page(tmp_path):
    pager = _core.Pager(1 << 18)
    file = pager.open(tmp_path / "x", "w+", 1 << 18)
    segment = file.segment(0, 1 << 18, 4096)
    writer = segment.writer(0, 6 * 4096, 4096)
    views = []
    for _ in range(6):
        panel = writer.panel()
        panel[:] = 1
        views.append(panel[:])
        writer.put()
        del panel
    writer.close()
    offsets, out = np.arange(32) * 4096, np.zeros((32, 4096), np.uint8)
    segment.gather(offsets, 4096, out)
    for view in views:
        view[:] = 7
    segment.gather(offsets, 4096, out)
    assert not (out == 7).any()


def test_a_full_pool_that_waits_blocks_no_thread(tmp_path):
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    status, out, error = run_python(
        """
import sys, threading
from prunus import _core

pager = _core.Pager(1 << 16)
segment = pager.open(sys.argv[1], "r+").segment(0, 1 << 20, 8192)
reader, kept = segment.reader(0, 1 << 20, 4096), []

def hold():
    try:
        kept.extend(panel for _, panel in reader)
    except ValueError:
        print("full")

thread = threading.Thread(target=hold)
thread.start()
while thread.is_alive():
    pager.stats()
""",
        str(tmp_path / "x"),
        timeout=60,
    )
    assert (status, out.strip()) == (0, "full"), error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_leaves_the_file_alone(tmp_path):
    status, out, error = run_python(
        """
import os, sys, warnings
from prunus import _core

warnings.filterwarnings("ignore", category=DeprecationWarning)
file = _core.Pager(1 << 20).open(sys.argv[1], "w+", 0)
file.write(0, b"x" * 5000)
hear, tell = os.pipe()
child = os.fork()
if child == 0:
    os.read(hear, 1)
    refused = 0
    for call in (lambda: file.write(0, b"x"), lambda: file.resize(10), file.sync, lambda: file.read(0, 1)):
        try:
            call()
        except ValueError:
            refused += 1
    del file
    os._exit(0 if refused == 4 else 1)
file.write(5000, b"y" * 100_000)
os.write(tell, b".")
print(os.waitpid(child, 0)[1], os.path.getsize(sys.argv[1]))
""",
        str(tmp_path / "x"),
        timeout=60,
    )
    assert (status, out.split()) == (0, ["0", "105000"]), error


@pytest.mark.parametrize(("offset", "size"), [(0, 1 << 40), (2**64 - 1, 1), (11, 0), (5, 6)])
def test_more_than_the_file_has_is_refused_at_once(tmp_path, offset, size):
    (tmp_path / "x").write_bytes(bytes(10))
    file = _core.Pager(1 << 20).open(tmp_path / "x", "r")
    with pytest.raises(OSError, match="expected"):
        file.read(offset, size)
    assert file.read(5, 5) == bytes(5)


def test_errors_have_numbers(tmp_path):
    file = _core.Pager(1 << 20).open(tmp_path / "x", "w+", 10)
    with pytest.raises(OSError, match="write") as caught:
        file.write(2**64 - 1, b"ab")
    assert caught.value.errno is not None
