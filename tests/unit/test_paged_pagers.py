"""Budgets: as text, and by default."""

import gc
import weakref

import numpy as np
import pytest

import prunus as pr
from prunus.paged import Pager, default_pager, pagers, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("1", 1),
        ("4096 B", 4096),
        ("1kb", 1000),
        ("1 KiB", 1024),
        (" 512 MiB ", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2 TB", 2 * 10**12),
        ("0.5 TiB", 1 << 39),
        ("64M", 64 << 20),
        ("64 m", 64 << 20),
        ("64k", 64 << 10),
        ("1.5G", 3 << 29),
        ("64 MB", 64 * 10**6),
        ("64mib", 64 << 20),
        ("1e9", 10**9),
        ("1.5e+3", 1500),
        ("2e3 KiB", 2000 << 10),
    ],
)
def test_bytes_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "bad",
    [
        0,
        -1,
        "0",
        "",
        "MiB",
        "1 XiB",
        "-1",
        "1e-9",
        "e9",
        "1e99",
        "1e999999999",
        "9" * 40,
        "1 2",
        "nan",
        "inf",
        "٣ MiB",
        2**63,
    ],
)
def test_sizes_that_are_none(bad):
    with pytest.raises(ValueError, match="budget"):
        parse_bytes(bad)


def test_a_refusal_names_the_forms():
    with pytest.raises(ValueError, match=r"512 MiB.*64M.*2 GB.*1e9.*got 'much'"):
        parse_bytes("much")


@pytest.mark.parametrize("bad", [None, 1.5, b"1", [1]])
def test_types_that_are_no_sizes(bad):
    with pytest.raises(TypeError, match="budget"):
        parse_bytes(bad)


def test_the_default_is_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(pagers, "_available", lambda: 8 << 30)
    monkeypatch.setattr(pagers, "_groups", list)
    assert pagers.default_budget() == 2 << 30
    monkeypatch.setattr(pagers, "_available", lambda: 8 << 20)
    assert pagers.default_budget() == 64 << 20
    monkeypatch.setattr(pagers, "_available", lambda: None)
    assert pagers.default_budget() == 1 << 30


def test_the_limit_of_a_control_group_counts(monkeypatch, tmp_path):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1048576\n")
    monkeypatch.setattr(pagers, "_available", lambda: 8 << 30)
    monkeypatch.setattr(pagers, "_groups", lambda: [(limit, used), (tmp_path / "no", tmp_path / "no")])
    limit.write_text("536870912\n")
    used.write_text(f"{129 << 20}\n")
    assert pagers.free_memory() == (512 - 128) << 20
    limit.write_text("max\n")
    assert pagers.free_memory() == 8 << 30


def test_this_machine_tells_what_is_free():
    free = pagers.free_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_the_default_pager_is_shared():
    assert default_pager() is default_pager()
    assert pagers.pick_pager(None, None) is default_pager()._pager
    own = Pager(1 << 20)
    assert pagers.pick_pager(None, own) is own._pager
    assert pagers.pick_pager("1 MiB", None).budget == 1 << 20
    with pytest.raises(ValueError, match="budget"):
        Pager("nothing")


def test_what_users_get_is_the_public_class(tmp_path):
    path = tmp_path / "a.npy"
    own = Pager("1 MiB")
    a = pr.paged.zeros((4, 2), path=path, pager=own)
    assert a.pager is own
    assert a.T.pager is own
    b = pr.paged.open(path, budget="2 MiB")
    for pager, budget in ((default_pager(), None), (a.pager, 1 << 20), (b.pager, 2 << 20)):
        assert isinstance(pager, Pager)
        assert "budget" in repr(pager)
        assert budget in (None, pager.budget)
    assert repr(b.pager) == "<prunus.paged.Pager with a budget of 2.0 MiB>"
    assert b.pager is b.rows(1).pager
    assert pr.paged.zeros(3).pager is default_pager()
    with a.pager.record() as plan:
        a.load()
    assert len(plan) == 1
    with b.pager.follow(plan):
        b.load()
    assert a.pager.stats()["bytes_read"] >= 0


def test_a_pager_lives_while_it_is_held():
    raw = pagers.new_pager(1 << 20)
    first = Pager.of(raw)
    assert Pager.of(raw) is first
    assert Pager.of(first) is first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert Pager.of(raw).budget == 1 << 20


def test_from_file_takes_a_pager_and_its_file(tmp_path):
    np.arange(6, dtype="f4").tofile(tmp_path / "raw")
    own = Pager("1 MiB")
    file = own.open(tmp_path / "raw")
    a = pr.paged.from_file(file, 8, (2, 2), "f4", pager=own)
    assert a.load().tolist() == [[2, 3], [4, 5]]
    assert a.pager is own
    with own.record() as plan:
        a.load()
    assert len(plan) == 1
