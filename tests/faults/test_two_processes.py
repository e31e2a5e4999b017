"""Two processes on one file, and what others do to a file that is open.

What is promised: after a flush, whoever opens the file sees what was written; writers of places that share no
page never undo each other. In a page that two processes write, each value is one of those that were written
there or was there before, and the later flush decides which.
"""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

import prunus as pr
from prunus import paged

ROWS, WIDTH, ROUNDS = 96, 1024, 12

WRITER = """
import sys
import numpy as np
from prunus import paged
path, first, step, begin, end = sys.argv[1], *map(int, sys.argv[2:])
a = paged.open(path, mode="r+", budget="256 KiB")
for k in range(1, {rounds} + 1):
    for i in range(first, len(a), step):
        a[i, begin:end] = 1000 * begin + 10 * k + first
    a.flush()
    print(k, flush=True)
    sys.stdin.readline()
"""


def writer(path, first, step, begin=0, end=WIDTH):
    arguments = map(str, (path, first, step, begin, end))
    code = WRITER.format(rounds=ROUNDS)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=pipe, stdout=pipe, text=True)


def ends(*children):
    """Let processes run to their ends, at the same time."""
    for child in children:
        child.stdin.write("\n" * ROUNDS)
        child.stdin.close()
    for child in children:
        assert child.stdout.read().split()[-1] == str(ROUNDS)
        child.stdout.close()
        assert child.wait(120) == 0


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.npy"
    paged.from_array(np.zeros((ROWS, WIDTH), np.float32), path).flush()
    return path


def test_what_one_flushed_the_other_reads(path):
    child = writer(path, 0, 1)
    for k in range(1, ROUNDS + 1):
        assert child.stdout.readline() == f"{k}\n"
        with_pager = paged.open(path, budget="256 KiB")
        assert (with_pager[...] == 10 * k).all()
        assert paged.open(path)[ROWS - 1, 7] == 10 * k  # through the pager that has it from before
        child.stdin.write("\n")
        child.stdin.flush()
    child.stdin.close()
    child.stdout.close()
    assert child.wait(60) == 0


def test_writers_of_places_that_share_no_page(path):
    # rows are pages
    ends(*(writer(path, first, 3) for first in range(3)))
    want = (10 * ROUNDS + np.arange(ROWS) % 3)[:, None]
    np.testing.assert_array_equal(np.load(path), np.broadcast_to(want, (ROWS, WIDTH)))


def test_writers_in_the_same_pages(path):
    halves = (0, WIDTH // 2 - 3), (WIDTH // 2 - 3, WIDTH)
    ends(*(writer(path, 0, 1, *half) for half in halves))
    found = np.load(path)
    for begin, end in halves:
        allowed = {0.0, *(1000.0 * begin + 10 * k for k in range(1, ROUNDS + 1))}
        assert set(np.unique(found[:, begin:end]).tolist()) <= allowed
    # each row is as the later of two flushes had it: at least that one's own half is its last
    last = [found[:, begin] == 1000 * begin + 10 * ROUNDS for begin, _ in halves]
    assert (last[0] | last[1]).all()


def test_a_file_that_another_one_takes_the_place_of(path, tmp_path):
    a, w = paged.open(path, budget="256 KiB"), paged.open(path, mode="r+", budget="256 KiB")
    w[3] = 5
    paged.from_array(np.ones((ROWS, WIDTH), np.float32), tmp_path / "b.npy").flush()
    os.replace(tmp_path / "b.npy", path)
    for opened in (a, w):
        with pytest.raises(OSError, match="taken its place") as raised:
            opened.sum()
        assert raised.value.errno == errno.ESTALE
        assert os.fsdecode(raised.value.filename) == str(path)
    w.flush()  # to the file that it was, which is nobody else's now
    assert (np.load(path) == 1).all()
    assert pr.open(path).sum() == ROWS * WIDTH


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_file_that_is_cut_while_pages_of_it_are_in_memory(path, mode):
    a = paged.open(path, mode=mode, budget="1 MiB")
    assert (a[...] == 0).all()
    os.truncate(path, 4096 + 40 * 4096 + 100)
    with pytest.raises(OSError, match=r"cut|bytes") as raised:
        a.sum()
    assert raised.value.errno == errno.ESTALE
    with pytest.raises(pr.FormatError):
        pr.open(path)
    if mode == "r+":
        # what was there is written back where it was; nothing is made up for what was cut off
        a[5] = 1
        a.flush()
        found = np.fromfile(path, np.float32, offset=4096)
        assert (found[5 * WIDTH : 6 * WIDTH] == 1).all()
