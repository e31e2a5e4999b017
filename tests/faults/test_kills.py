"""kill -9 while working memory on disk is written: what was flushed is there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import prunus as pr

# How many processes are killed in each test; PRUNUS_KILLS=200 for the long run.
KILLS = int(os.environ.get("PRUNUS_KILLS", "8"))
ROWS, WIDTH = 64, 1024

APPENDS = """
import sys
import numpy as np, prunus as pr
a = pr.paged.open(sys.argv[1], mode="r+", budget="1 MiB")
while True:
    k = len(a)
    a.append(np.full((1 + k % 3, {width}), k, np.float32))
    a.flush()
    print(len(a), flush=True)
"""

FLUSHES = """
import sys
import numpy as np, prunus as pr
a = pr.paged.open(sys.argv[1], mode="r+", budget="256 KiB")
k = int(a[:, 0].max())
while True:
    k += 1
    for i in np.random.default_rng(k).permutation({rows}):
        a[i] = k
    a.flush()
    print(k, flush=True)
"""


def confirmed(code: str, path: str, seconds: float) -> int:
    """Run a program until it is killed; return the last number that it told."""
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(seconds)
    child.kill()
    told = first + child.stdout.read()
    child.stdout.close()
    child.wait()
    # The last line may have been cut.
    return int(told.rpartition(b"\n")[0].split(b"\n")[-1])


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills a process")


def test_killed_while_appending(tmp_path, cases):
    """The file is an array of whole rows, and every row whose flush was told of holds what was written."""
    path, chance = str(tmp_path / "a.npy"), random.Random(0)
    pr.paged.from_array(np.zeros((1, WIDTH), np.float32), path).flush()
    lengths = set()
    for _ in range(KILLS):
        with cases:
            rows = confirmed(APPENDS.format(width=WIDTH), path, chance.uniform(0, 0.05))
            found = np.load(path)
            assert rows <= len(found)
            assert found.shape[1:] == (WIDTH,)
            first = 0
            while first < rows:
                count = 1 if not first else 1 + first % 3
                assert (found[first : first + count] == first).all()
                first += count
            lengths.add(len(found))
            # Rows that nobody vouched for may be there or not: the next round goes on from whole ones.
            pr.paged.from_array(found[:first], path).flush()
    assert len(lengths) > KILLS // 4, "most were killed before they appended anything"


def test_killed_while_flushing(tmp_path, cases):
    """Every row holds the last number that was flushed, or a later one, and nothing between."""
    path, chance = str(tmp_path / "a.npy"), random.Random(1)
    pr.paged.from_array(np.zeros((ROWS, WIDTH), np.float32), path).flush()
    numbers = set()
    for _ in range(KILLS):
        with cases:
            number = confirmed(FLUSHES.format(rows=ROWS), path, chance.uniform(0, 0.05))
            found = np.load(path)
            assert found.shape == (ROWS, WIDTH)
            # A row is a page and a sector: a write of it is done or not.
            assert (found == found[:, :1]).all()
            assert (found[:, 0] >= number).all()
            numbers.add(number)
    assert len(numbers) > KILLS // 4, "most were killed before they wrote anything"
