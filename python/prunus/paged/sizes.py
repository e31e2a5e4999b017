"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, SupportsIndex

__all__ = ["parse_bytes"]

_MOST: Final = 2**63 - 1
# A letter alone is 1024-based, as for memory limits of systems and containers.
_UNITS: Final = {
    unit: scale
    for power, letter in enumerate("kmgt", 1)
    for unit, scale in ((letter, 1024**power), (f"{letter}ib", 1024**power), (f"{letter}b", 1000**power))
} | {"": 1, "b": 1}
_TEXT: Final = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?(?:e\+?[0-9]{1,2})?)\s*([a-z]*)\s*", re.ASCII)
_FORMS: Final = (
    'a number alone, or with K, M, G or T (or KiB, MiB, ...: 1024-based), or with KB, MB, ... (1000-based), '
    'such as "512 MiB", "64M", "2 GB" or "1e9"'
)  # fmt: skip
# What is a mode of ``open`` elsewhere, where ours takes it by its name.
_MODES: Final = ("r", "r+", "w", "w+", "a", "a+", "x", "x+", "c", "rb", "wb", "rb+", "r+b")


def parse_bytes(size: SupportsIndex | str, name: str = "budget") -> int:
    """Return a number of bytes that is given as such, or as text with a unit.

    Parameters
    ----------
    size : int or str
        ``4096``, ``"512 MiB"`` or ``"512M"`` (1024-based), ``"2 GB"`` (1000-based), ``"1.5GiB"``, ``"1e9"``.
        Case does not matter.
    name : str
        The argument's name, for messages.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or below 1.

    Examples
    --------
    >>> parse_bytes("512 MiB"), parse_bytes("1.5 GB"), parse_bytes("64k"), parse_bytes(4096)
    (536870912, 1500000000, 65536, 4096)
    """
    if isinstance(size, str):
        found = _TEXT.fullmatch(size.lower())
        if found is None or found[2] not in _UNITS:
            mode = (
                f"; a mode is given by its name: mode={size!r}" if name == "budget" and size in _MODES else ""
            )
            raise ValueError(f"{name} must be bytes as {_FORMS}, got {size!r}{mode}")
        count = int(Fraction(found[1]) * _UNITS[found[2]])
    else:
        try:
            count = size.__index__()
        except AttributeError:
            raise TypeError(
                f'{name} must be bytes as a whole number or text such as "512 MiB", got {size!r}'
            ) from None
    if not 1 <= count <= _MOST:
        raise ValueError(f"{name} must be from 1 to 2**63 - 1 bytes, got {size!r}")
    return count
