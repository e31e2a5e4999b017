"""Plain-text tables for the command line."""

from collections.abc import Sequence

__all__ = ["format_table"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out cells in columns as wide as their widest cell.

    Parameters
    ----------
    header : sequence of str
        Column titles.
    rows : sequence of sequence of str
        Cells; each row is as long as `header`.
    left : int
        How many leading columns are aligned to the left; the rest (numbers) are aligned to the right.

    Returns
    -------
    str
        The table, without a trailing newline.

    Examples
    --------
    >>> print(format_table(["dtype", "GF/s"], [["float32", "98.5"], ["int8", "7"]]))
    dtype    GF/s
    -------  ----
    float32  98.5
    int8        7
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(header)} columns: {row!r}")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
