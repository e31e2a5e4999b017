"""Which chip a row of a file means."""

import re
import tomllib
from functools import cache

from prunus import _core

__all__ = ["chip_of", "compute_grid", "spec_text"]

# The chip that measurements name by their architecture were made on.
_BY_ARCH = {"wormhole_b0": "n150", "wormhole": "n150", "blackhole": "p150", "grayskull": "e150"}


def chip_of(device: str, arch: str) -> str:
    """Return the name of a shipped chip from a device (``p150``, ``p150b``) or an architecture.

    Raises
    ------
    ValueError
        If neither is known, or none is given.

    Examples
    --------
    >>> chip_of("p150a", ""), chip_of("", "wormhole_b0")
    ('p150', 'n150')
    """
    known = _core.chip_names()
    if device:
        # Boards of one chip differ by a letter that says how they are cooled or cabled.
        for name in (device.lower(), re.sub(r"[a-z]$", "", device.lower())):
            if name in known:
                return name
        raise ValueError(f"unknown device {device!r}: there are {', '.join(known)}")
    if not arch:
        raise ValueError("neither device nor arch is given")
    if arch.lower() not in _BY_ARCH:
        raise ValueError(f"unknown arch {arch!r}: there are {', '.join(_BY_ARCH)}")
    return _BY_ARCH[arch.lower()]


@cache
def spec_text(chip: str) -> str:
    """Return a chip's description."""
    return _core.chip_text(chip)


@cache
def compute_grid(chip: str) -> tuple[int, int]:
    """Return columns and rows of cores that products use on a chip where nobody says otherwise."""
    across, down = tomllib.loads(spec_text(chip))["workers"]["compute_grid"]
    return int(across), int(down)
