"""What docs/cuda.md shows is run."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cuda.md"


def test_the_page(capsys):
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 15
    assert not failed, capsys.readouterr().out
