"""What a trace records."""

import contextvars
import json
import threading

import numpy as np
import pytest

import prunus as pr
from prunus._trace import span


@pytest.fixture(name="W")
def eye():
    return pr.BSR.from_dense(np.eye(8, dtype=np.float32), blocksize=(4, 4))


def test_nothing_is_recorded_outside(W):
    assert not span("anything")
    with pr.trace() as t:
        pass
    W @ np.ones(8, np.float32)
    assert t.records == []
    assert t.live_fraction == 1.0


@pytest.mark.parametrize("call", [lambda W, x: W @ x, lambda W, x: x.T @ W.T, np.matmul])
def test_products_are_counted(W, call):
    x = np.ones((8, 3), np.float32)
    with pr.trace() as t:
        call(W, x)
    (record,) = t.records
    assert record.name == "matmul"
    assert record.path.endswith("f32 " + record.path.split()[-1])
    assert t.flops == 2 * 2 * 16 * 3
    assert t.flops_skipped == 2 * (64 - 32) * 3
    assert t.bytes_loaded == 2 * 16 * 4
    assert t.bytes_skipped == 32 * 4
    assert 0 < record.seconds <= t.seconds


def test_batches_are_counted_for_every_member(W):
    x = np.ones((5, 8, 3), np.float32)
    with pr.trace() as t:
        W @ x
    assert t.flops == 5 * 2 * 2 * 16 * 3
    stacked = pr.BSR.from_dense(np.stack([np.eye(8), np.ones((8, 8))]).astype(np.float32), blocksize=4)
    with pr.trace() as t:
        stacked @ x[:2]
    assert t.flops == 2 * (2 + 4) * 16 * 3
    assert t.flops_skipped == 2 * (128 - 96) * 3


def test_traces_nest_and_the_outer_one_sees_both(W):
    x = np.ones(8, np.float32)
    with pr.trace() as outer:
        W @ x
        with pr.trace() as inner:
            W @ x
        W @ x
    assert len(inner.records) == 1
    assert len(outer.records) == 3
    assert outer.flops == 3 * inner.flops


def test_an_operation_inside_another_is_deeper():
    with pr.trace() as t, span("outside"), span("inside"):
        pass
    assert {r.name: r.depth for r in t.records} == {"outside": 0, "inside": 1}
    assert [line.split()[0] for line in t.table().splitlines()[2:]] == ["outside", "inside"]


def test_threads_take_part_with_their_context(W):
    x = np.ones(8, np.float32)
    with pr.trace() as t:
        others = [
            threading.Thread(target=contextvars.copy_context().run, args=(lambda: W @ x,)) for _ in range(4)
        ]
        for other in others:
            other.start()
        for other in others:
            other.join()
        stranger = threading.Thread(target=lambda: W @ x)
        stranger.start()
        stranger.join()
    assert len(t.records) == 4
    assert len({r.thread for r in t.records} - {threading.get_ident()}) >= 1


def test_an_error_is_recorded_as_time_and_leaves_the_trace_usable(W):
    with pr.trace() as t:
        with pytest.raises(ValueError, match="inner sizes"):
            W @ np.ones(7, np.float32)
        W @ np.ones(8, np.float32)
    assert [r.depth for r in t.records] == [0] * len(t.records)
    assert t.flops == 2 * 32


def test_saved_events_are_what_perfetto_reads(W, tmp_path):
    with pr.trace() as t:
        W @ np.ones(8, np.float32)
    t.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events] == ["matmul"]
    assert events[0]["ph"] == "X"
    assert events[0]["dur"] > 0
    assert events[0]["args"]["flops"] == t.flops


def test_plot_draws_each_operation(W, tmp_path):
    pytest.importorskip("matplotlib")
    with pr.trace() as t:
        W @ np.ones(8, np.float32)
    figure = t.plot(tmp_path / "trace.png")
    assert len(figure.axes) == 2
    assert (tmp_path / "trace.png").stat().st_size > 1000
    above = figure.axes[0]
    assert above.get_legend().get_window_extent().x0 >= above.get_window_extent().x1


def test_a_trace_may_go_on_but_not_inside_itself(W):
    x = np.ones(8, np.float32)
    t = pr.trace()
    for _ in range(2):
        with t:
            W @ x
            with pytest.raises(RuntimeError, match="recording already"), t:
                pass
    first, second = t.records
    assert first.start + first.seconds <= second.start
    assert t.seconds >= second.start + second.seconds
