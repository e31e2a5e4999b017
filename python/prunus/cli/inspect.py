"""``python -m prunus inspect``: what a file of tensors holds."""

import argparse
from typing import TYPE_CHECKING, Any

from prunus.cli._arguments import Commands, number
from prunus.cli._files import readable, refusing

if TYPE_CHECKING:
    from prunus._dtypes import Array
    from prunus.paged.files import File
    from prunus.paged.sparse import PagedBSR

__all__ = ["add", "run"]

_SHADES = " .:-=+*#%@"


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "inspect",
        help="list the tensors of a file: shapes, dtypes, bytes, density, patterns",
        description="List what a .safetensors or .npy file, or a checkpoint of several files, holds. "
        "Values are not read.",
    )
    command.add_argument("file", help="a file, a checkpoint's index.json, or its folder")
    command.add_argument(
        "--width", type=number, default=48, help="columns of a picture (default: %(default)s)"
    )
    command.add_argument("--no-pictures", action="store_true", help="leave out the pictures of patterns")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table of arrays and the patterns."""
    from prunus.paged.files import File, open_file

    with refusing():
        found = open_file(options.file)
        if not isinstance(found, File):
            _print_array(found)
            return 0
        with found:
            _print_file(found, 0 if options.no_pictures else options.width)
    return 0


def _print_array(array: Any) -> None:
    from prunus._format import size_text

    shape = " x ".join(map(str, array.shape)) or "scalar"
    print(f"{readable(array.path)}: {shape} of {array.dtype}, {size_text(array.nbytes)}")


def _print_file(file: "File", width: int) -> None:
    from prunus._format import size_text
    from prunus._table import format_table
    from prunus.paged.headers import Blocks

    sums = "with checksums" if file.has_checksums else "no checksums"
    parts = f" in {len(file.files)} files" if len(file.files) > 1 else ""
    print(f"{readable(file.path)}: {len(file)} arrays{parts}, {size_text(file.nbytes)}, {sums}")
    for key, value in file.metadata.items():
        print(f"  {readable(key)}: {readable(value)}")
    if not len(file):
        return
    rows = []
    for name in file:
        one = file.describe(name)
        shape = " x ".join(map(str, one.shape)) or "scalar"
        if isinstance(one, Blocks):
            size = sum(part.nbytes for part in (one.values, one.indices, one.indptr))
            br, bc = one.blocksize
            sparse = [f"{one.blocks} of {br} x {bc}", f"{one.density:.1%}"]
            rows.append([readable(name), one.values.dtype, shape, size_text(size), *sparse])
        else:
            rows.append([readable(name), one.dtype, shape, size_text(one.nbytes), "", ""])
    print()
    print(format_table(["name", "dtype", "shape", "size", "blocks", "density"], rows, left=3))
    for name in file:
        if width and isinstance(file.describe(name), Blocks):
            array: Any = file[name]
            print(f"\n{readable(name)}{', first of the batch' if array.ndim > 2 else ''}:")
            print(picture(array, width))


def picture(array: "PagedBSR", width: int) -> str:
    """Draw which blocks are stored: one character for some blocks, darker the more of them are there."""
    import numpy as np

    from prunus._layout import block_rows, blocks_along

    br, bc = array.blocksize
    rows, cols = blocks_along(array.shape[-2], br), blocks_along(array.shape[-1], bc)
    if rows == 0 or cols == 0:
        return "(no blocks)"
    # A character is about twice as high as wide, and so should what it stands for be.
    across = min(width, cols)
    down = max(min(round(across * array.shape[-2] / array.shape[-1] / 2), rows, 2 * width), 1)
    indptr = array.indptr.reshape(-1, rows + 1)[0]
    row, col = block_rows(indptr), array.indices[indptr[0] : indptr[-1]]
    there = np.bincount((row * down // rows) * across + col.astype(np.int64) * across // cols)
    counts: Array = np.zeros(down * across)
    counts[: len(there)] = there
    room = np.outer(
        np.bincount(np.arange(rows) * down // rows, minlength=down),
        np.bincount(np.arange(cols) * across // cols, minlength=across),
    )
    # What is not empty is never drawn as empty, and only what is full as full.
    share = counts.reshape(down, across) / room
    last = len(_SHADES) - 1
    shade = np.where(share >= 1, last, np.where(share > 0, 1 + share * (last - 1), 0)).astype(int)
    lines = ["|" + "".join(_SHADES[k] for k in line) + "|" for line in shade.tolist()]
    edge = "+" + "-" * across + "+"
    return "\n".join([edge, *lines, edge])
