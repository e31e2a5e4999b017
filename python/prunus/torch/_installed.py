"""Looks for torch before anything here is imported that needs it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

__all__ = ["OLDEST", "check"]

#: The oldest torch whose compiler takes operands of component tensors as they are here.
OLDEST: Final = (2, 11)


def check() -> None:
    """Raise unless torch is installed, and new enough.

    Raises
    ------
    ImportError
        Naming the extra that brings it.
    """
    needed = ".".join(map(str, OLDEST))
    if find_spec("torch") is None:
        raise ModuleNotFoundError(
            f"prunus.torch needs torch {needed} or later: pip install 'prunus[torch]'", name="torch"
        )
    try:
        found = version("torch")
    except PackageNotFoundError:  # a build of one's own
        return
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is not None and tuple(map(int, numbers.groups())) < OLDEST:
        raise ImportError(
            f"prunus.torch needs torch {needed} or later, found {found}: pip install -U 'prunus[torch]'",
            name="torch",
        )


check()
