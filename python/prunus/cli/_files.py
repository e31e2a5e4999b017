"""What the commands on files share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from prunus.cli.errors import CommandError

__all__ = ["readable", "refusing", "writable"]


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what a file or an argument is at fault for into the command's message."""
    from prunus._errors import PrunusError

    try:
        yield
    except BrokenPipeError:  # whoever read the output has gone: no fault of the command's
        raise
    except (OSError, ValueError, TypeError, FloatingPointError, MemoryError, PrunusError) as error:
        raise CommandError(str(error) or type(error).__name__) from error


def writable(path: str) -> None:
    """Raise OSError if a file cannot be written there: said before the work whose result it takes.

    Raises
    ------
    OSError
        If it is a folder, or the folder that it is to be in is missing or takes no files.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(21, "expected the name of a file, this is a folder", path)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "there is no folder to write this file into", path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "the folder takes no files", path)


def readable(text: str) -> str:
    r"""Return a name from a file as it may be shown on a terminal: control characters are escaped.

    Examples
    --------
    >>> print(readable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
