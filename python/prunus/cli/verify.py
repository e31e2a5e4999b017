"""``python -m prunus verify``: a file's bytes against its checksums."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from prunus.cli._arguments import Commands
from prunus.cli._files import readable, refusing
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus._progress import Progress

__all__ = ["add", "run"]

_SHOWN = 20


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "verify",
        help="compare a file with its checksums, page by page",
        description="Read a .safetensors file that was saved with checksums, and compare every page. "
        "The exit status is 1 if one differs, or if there is nothing to compare with.",
    )
    command.add_argument("file", help="a file, a checkpoint's index.json, or its folder")
    command.set_defaults(run=run)


def _step(bar: "Progress", name: str, count: int) -> None:
    bar.step(name, count)


def run(options: argparse.Namespace) -> int:
    """Check all pages and name those that are damaged."""
    from prunus._format import size_text
    from prunus._progress import Progress
    from prunus.paged.files import File, open_file

    damaged: list[str] = []
    pages = 0
    with refusing():
        found = open_file(options.file)
        if not isinstance(found, File):
            raise CommandError(
                f"{readable(options.file)}: .npy has no checksums, only its header was checked"
            )
        size = size_text(found.nbytes)
        with found, Progress(found.nbytes, "verify") as bar:
            for checks in found.checksums():
                damaged += [str(one) for one in checks.frame()]
                for name in checks.tensors:
                    label = readable(name)
                    damaged += [str(one) for one in checks.check(name, partial(_step, bar, label))]
                pages += len(checks.table) - 2
    for line in damaged[:_SHOWN]:
        print(line)
    if len(damaged) > _SHOWN:
        print(f"and {len(damaged) - _SHOWN} more")
    if damaged:
        raise CommandError(f"{readable(options.file)}: {len(damaged)} of {pages} pages are damaged")
    print(f"{readable(options.file)}: {pages} pages are as they were written ({size})")
    return 0
