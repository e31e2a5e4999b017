"""The ring of buffers between the host and a GPU: the order of copies and kernels, and what it holds."""

import numpy as np
import pytest
import torch

from prunus.cuda import streaming
from prunus.cuda.streaming import Ring, borrowed, held, release


class Deferred:
    """A GPU in plain Python: two queues that run when they like, as far as events let them."""

    def __init__(self, rng, lost=None):
        self.rng, self.lost = rng, lost
        self.queues, self.done = {"copies": [], "kernels": []}, {"copies": 0, "kernels": 0}
        self.waited = 0

    def copy(self, to, what, after):
        self._after("copies", None if self.lost == "consumed" else after)
        return self._put("copies", lambda: to.copy_(what))

    def reached(self):
        return "kernels", len(self.queues["kernels"])

    def follow(self, event):
        self._after("kernels", None if self.lost == "copied" else event)

    def wait(self, event):
        self.waited += 1
        while self.lost != "host" and not self._is(event):
            self._step()

    def drain(self):
        while any(self.done[name] < len(queue) for name, queue in self.queues.items()):
            self._step()

    def kernel(self, function):
        self._put("kernels", function)

    def some(self):
        for _ in range(int(self.rng.integers(4))):
            self._step()

    def _after(self, name, event):
        if event is not None:
            self._put(name, event)

    def _put(self, name, what):
        self.queues[name].append(what)
        return name, len(self.queues[name])

    def _is(self, event):
        return self.done[event[0]] >= event[1]

    def _step(self):
        able = [
            name
            for name, queue in self.queues.items()
            if self.done[name] < len(queue)
            and (callable(queue[self.done[name]]) or self._is(queue[self.done[name]]))
        ]
        if able:
            name = able[int(self.rng.integers(len(able)))]
            what = self.queues[name][self.done[name]]
            if callable(what):
                what()
            self.done[name] += 1


def sent(place, rng, lost=None, slots=3, count=40):
    """Send pieces of random sizes through; return what kernels saw, and what they should have seen."""
    gpu = Deferred(rng, lost)
    ring = Ring(place, 64, slots, gpu)
    wanted = [rng.integers(0, 256, rng.integers(0, 65), dtype=np.uint8) for _ in range(count)]
    seen = []

    def fill(piece, view):
        gpu.some()
        view[...] = 255
        view[: len(piece)] = piece
        return len(piece)

    for _, there in ring.pieces(wanted, fill):
        gpu.kernel(lambda there=there: seen.append(there.cpu().numpy().copy()))
        gpu.some()
    ring.drain()
    return seen, wanted, gpu


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_kernels_see_what_was_sent(place, slots):
    for seed in range(20):
        seen, wanted, gpu = sent(place, np.random.default_rng(seed), slots=slots)
        assert len(seen) == len(wanted)
        assert all(np.array_equal(one, other) for one, other in zip(seen, wanted, strict=True))
        assert gpu.waited


@pytest.mark.parametrize("lost", ["copied", "consumed", "host"])
def test_every_wait_is_needed(place, lost):
    """Without one of the three, some order of events gives wrong bytes: the test above would see it."""
    wrong = 0
    for seed in range(20):
        seen, wanted, _ = sent(place, np.random.default_rng(seed), lost)
        wrong += not all(np.array_equal(one, other) for one, other in zip(seen, wanted, strict=True))
    assert wrong


def test_rings_are_kept_and_counted(place, monkeypatch):
    release()
    before = held(place)
    monkeypatch.setattr(streaming, "BUFFER", 1000)
    with borrowed(place, 10) as ring:
        size = ring.size
        assert size == 1024
        assert held(place) - before == ring.nbytes == 1024 * streaming.SLOTS
        with borrowed(place, 10) as other:
            assert other is not ring
        with borrowed(place, 5000) as larger:
            assert larger.size >= 5000
    del larger
    with borrowed(place, 10) as again:
        assert again in (ring, other)
    del ring, other, again
    release()
    assert held(place) == before


def test_what_goes_wrong_is_raised_when_nothing_is_under_way(place, rng, monkeypatch):
    release()
    monkeypatch.setattr(streaming, "BUFFER", 256)
    gpu = Deferred(rng)
    monkeypatch.setattr(streaming, "channel_of", lambda where: gpu)
    done = []

    def broken(error):
        def fill(piece, view):
            if piece == 7:
                raise error
            return 100

        with borrowed(place, 1) as ring:
            for _, there in ring.pieces(range(10), fill):
                gpu.kernel(lambda there=there: done.append(there.clone()))

    for error in (OSError("the disk"), KeyboardInterrupt()):
        done.clear()
        with pytest.raises(type(error)):
            broken(error)
        assert len(done) == 7
        assert not streaming._IDLE  # the next call begins anew


@pytest.mark.parametrize("pinned", [True, False])
def test_no_memory(place, monkeypatch, pinned):
    release()
    real = torch.empty

    def empty(*args, **options):
        if ("pin_memory" in options) == pinned and options.get("dtype") == torch.uint8:
            raise RuntimeError("CUDA error: out of memory")
        return real(*args, **options)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(MemoryError, match=str(streaming.BUFFER)), borrowed(place, 1):
        pass


def test_not_within_a_graph(place, monkeypatch):
    if place.interpreted:
        pytest.skip("the interpreter has no CUDA graphs")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(Exception, match="cannot take part in a CUDA graph"):
        streaming.check_not_captured(place)
