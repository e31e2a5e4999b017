"""What the commands on files share."""

from collections.abc import Iterator
from contextlib import contextmanager

from prunus.cli.errors import CommandError

__all__ = ["readable", "refusing"]


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what a file or an argument is at fault for into the command's message."""
    from prunus._errors import PrunusError

    try:
        yield
    except (OSError, ValueError, TypeError, FloatingPointError, PrunusError) as error:
        raise CommandError(str(error)) from error


def readable(text: str) -> str:
    r"""Return a name from a file as it may be shown on a terminal: control characters are escaped.

    Examples
    --------
    >>> print(readable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
