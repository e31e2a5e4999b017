"""The simulator beside published measurements: no further off than promised."""

from pathlib import Path

from prunus.tensix.validation import groups, rows, run

DATA = Path(__file__).parents[2] / "data" / "tensix"


def predictions(kind, name, most=None):
    """Run the rows of a file, of products those of at most so many multiplications."""
    found = rows.read(DATA / name, kind)
    if most is not None:
        found = [
            row for row in found if row.cells.whole("m") * row.cells.whole("k") * row.cells.whole("n") <= most
        ]
    return run.predict_all(found, 2)


def test_networks_are_within_what_is_promised():
    every = groups.summaries(predictions("noc", "noc_calibration.csv"))
    assert {one.name.split()[0] for one in every} == {"blackhole", "wormhole_b0", "all"}
    for one in every:
        assert (one.median <= 3, one.p90 <= 10) == (True, True), one


def test_products_are_within_what_is_promised():
    """All but the largest, which take minutes and are the ones that are least off."""
    found = predictions("gemm", "gemm_n150_tuned.csv", most=2e10)
    *families, every = groups.summaries(found)
    assert (len(families), every.rows) == (5, 45)
    assert every.mean <= 4
    assert every.median <= 3
    assert every.p90 <= 8
    assert max(one.mean for one in families) <= 6
    # A model that knows the peak and two constants.
    null = groups.null_summary(found)
    assert every.mean < null.mean / 4
    assert every.median < null.median / 4
