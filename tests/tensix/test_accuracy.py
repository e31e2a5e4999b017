"""The simulator is as close to silicon as it was when its constants were fixed.

Samples of the calibration files: quick, and enough to notice a change of the model that makes it worse.
"""

from pathlib import Path

from prunus.tensix.validation import groups, rows, run

DATA = Path(__file__).parents[1] / "data" / "tensix"


def summaries(some):
    found = run.predict_all(some, 2)
    assert not [one.error for one in found if one.error]
    return groups.summaries(found)


def test_networks():
    overall = summaries(rows.read(DATA / "noc_calibration.csv", "noc")[::5])[-1]
    assert overall.rows == 257
    assert overall.median <= 3
    assert overall.p90 <= 10


def test_products():
    some = [row for row in rows.read(DATA / "gemm_n150_tuned.csv", "gemm") if row.cells.whole("m") <= 1024]
    found = run.predict_all(some, 2)
    overall = groups.summaries(found)[-1]
    assert overall.rows == len(some)
    assert overall.mean <= 6
    assert overall.mean < groups.null_summary(found).mean / 2


def test_dram():
    for group in summaries(rows.read(DATA / "dram_calibration.csv", "dram")):
        assert group.mean <= 3
