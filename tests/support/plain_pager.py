"""A pager in plain Python with the face of ``prunus._core.Pager``: pread and pwrite, and nothing cached.

It is strict about what it is handed, so that code tested with it keeps to the contract of the real one.
"""

import errno
import os
import threading

import numpy as np


def _bytes(array, what, writable=False):
    assert isinstance(array, np.ndarray), what
    assert array.dtype == np.uint8, what
    assert array.flags.c_contiguous, what
    assert array.flags.writeable or not writable, what
    return array


class Pager:
    """Opens files; keeps counts of what was asked of it, and no page."""

    def __init__(self, budget, io=None, depth=64):
        assert isinstance(budget, int)
        if budget < 4096:
            raise ValueError(f"budget is {budget} bytes, expected at least 4096")
        self.budget = budget
        self.io = io
        self.depth = depth
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("requests", "bytes_read", "bytes_written", "calls", "hits", "misses"), 0)

    def open(self, path, mode, size=0):
        return DiskFile(self, path, mode, size)

    def flush(self):
        pass

    def stats(self):
        rest = dict.fromkeys(("resident", "peak", "evictions", "dirty", "pinned"), 0)
        return {**self.counts, **rest, "mean_depth": 1.0}

    def count(self, **more):
        with self.lock:
            for key, value in more.items():
                self.counts[key] += value


class DiskFile:
    """A file that is open."""

    _FLAGS = {  # noqa: RUF012
        "r": os.O_RDONLY,
        "r+": os.O_RDWR,
        "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        "x+": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    }

    def __init__(self, pager, path, mode, size):
        self.pager = pager
        self.path = os.fsencode(path)
        self.writable = mode != "r"
        self.engine = "buffered"
        self.why = "plain Python"
        self._fd = os.open(self.path, self._FLAGS[mode] | getattr(os, "O_CLOEXEC", 0), 0o666)
        if size:
            os.ftruncate(self._fd, size)
        state = os.fstat(self._fd)
        self._identity = (state.st_dev, state.st_ino)
        self.size = state.st_size

    def __del__(self):
        self.close()

    @property
    def fd(self):
        if self._fd < 0:
            raise OSError(errno.EBADF, "the file is closed", os.fsdecode(self.path))
        return self._fd

    def resize(self, size):
        os.ftruncate(self.fd, size)
        self.size = size

    def sync(self):
        os.fsync(self.fd)

    def check(self):
        state = os.fstat(self.fd)
        if state.st_size < self.size:
            raise OSError(errno.ESTALE, "the file was cut", os.fsdecode(self.path))
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return
        if (there.st_dev, there.st_ino) != self._identity:
            raise OSError(errno.ESTALE, "the file was replaced", os.fsdecode(self.path))

    def close(self):
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def read(self, offset, size):
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def write(self, offset, data):
        assert isinstance(data, bytes)
        self.write_from(offset, memoryview(data))
        self.size = max(self.size, offset + len(data))

    def segment(self, start, length, page):
        return Segment(self, start, length, page)

    def read_into(self, offset, view):
        done = 0
        while done < len(view):
            got = os.preadv(self.fd, [view[done:]], offset + done)
            if got == 0:
                raise OSError(errno.EIO, "the file ends early", os.fsdecode(self.path))
            done += got
        self.pager.count(requests=1, bytes_read=done)

    def write_from(self, offset, view):
        done = 0
        while done < len(view):
            done += os.pwritev(self.fd, [view[done:]], offset + done)
        self.pager.count(requests=1, bytes_written=done)


class Segment:
    """A range of a file's bytes."""

    def __init__(self, file, start, length, page):
        assert all(type(v) is int for v in (start, length, page))
        assert page > 0
        if start < 0 or start + length > file.size:
            raise ValueError(f"bytes {start} to {start + length} of a file of {file.size}")
        self.file = file
        self.start = start
        self.length = length
        self.page = page

    def _check(self, offsets, size, values, writable=False):
        assert isinstance(offsets, np.ndarray)
        assert offsets.dtype == np.int64
        assert offsets.ndim == 1
        assert type(size) is int
        if values is not None:
            _bytes(values, "values", writable)
            assert values.shape == (len(offsets), size)
        if len(offsets) and (offsets.min() < 0 or offsets.max() + size > self.length):
            raise ValueError("offsets outside the segment")
        self.file.pager.count(calls=1)

    def gather(self, offsets, size, out):
        self._check(offsets, size, out, writable=True)
        for offset, row in zip(offsets.tolist(), out, strict=True):
            self.file.read_into(self.start + offset, memoryview(row))

    def scatter(self, offsets, size, values):
        self._check(offsets, size, values)
        assert self.file.writable
        for offset, row in zip(offsets.tolist(), values, strict=True):
            self.file.write_from(self.start + offset, memoryview(row))

    def prefetch(self, offsets, size):
        self._check(offsets, size, None)

    def reader(self, begin, end, panel):
        return Reader(self, begin, end, panel)

    def writer(self, begin, end, panel):
        return Writer(self, begin, end, panel)

    def flush(self):
        if self.file.writable:
            self.file.sync()


class Reader:
    """Panels of a range, in order."""

    def __init__(self, segment, begin, end, panel):
        assert all(type(v) is int for v in (begin, end, panel))
        assert 0 <= begin <= end <= segment.length, (begin, end, segment.length)
        assert panel > 0
        self.segment, self.at, self.end, self.panel = segment, begin, end, panel
        segment.file.pager.count(calls=1)

    def __iter__(self):
        return self

    def __next__(self):
        if self.at >= self.end:
            raise StopIteration
        at, size = self.at, min(self.panel, self.end - self.at)
        out = np.empty(size, np.uint8)
        self.segment.file.read_into(self.segment.start + at, memoryview(out))
        out.flags.writeable = False
        self.at += size
        return at, out

    def close(self):
        self.at = self.end


class Writer:
    """Panels of a range, in order."""

    def __init__(self, segment, begin, end, panel):
        assert all(type(v) is int for v in (begin, end, panel))
        assert segment.file.writable
        assert 0 <= begin <= end <= segment.length, (begin, end, segment.length)
        assert panel > 0
        self.segment, self.at, self.end, self.size = segment, begin, end, panel
        self.now = None

    def panel(self):
        assert self.now is None, "the panel before was not put"
        assert self.at < self.end, "all panels are written"
        self.now = np.full(min(self.size, self.end - self.at), 0xA5, np.uint8)
        return self.now

    def put(self):
        assert self.now is not None, "no panel was taken"
        self.segment.file.write_from(self.segment.start + self.at, memoryview(self.now))
        self.at += len(self.now)
        self.now = None

    def close(self):
        self.now = None
