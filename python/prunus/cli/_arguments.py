"""Types of arguments that several commands take."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from prunus._config import cores

__all__ = [
    "Commands",
    "byte_count",
    "choices",
    "densities",
    "mesh",
    "number",
    "numbers",
    "price",
    "seconds",
    "share",
    "thread_counts",
]

# A string: argparse's class takes a parameter only in its stub.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def number(text: str) -> int:
    """Read a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def numbers(text: str) -> list[int]:
    """Read whole numbers above 0, separated by commas."""
    return [number(part) for part in text.split(",")]


def mesh(text: str) -> tuple[int, int]:
    """Read rows and columns, such as ``2x4``."""
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"rows and columns such as 2x4, got {text!r}")
    return number(parts[0]), number(parts[1])


def byte_count(text: str) -> int:
    """Read a number of bytes, such as ``4GiB``, ``64M`` or ``500 MB``."""
    from prunus.paged.sizes import parse_bytes

    try:
        return parse_bytes(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """Read a time that is finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"must be finite and not negative, got {text}")
    return value


def share(text: str) -> float:
    """Read a share above 0 and at most 1, such as ``0.1`` or ``10%``."""
    number = text.strip()
    per_cent = number.endswith("%")
    value = seconds(number.removesuffix("%")) / (100 if per_cent else 1)
    if not 0 < value <= 1:
        hint = f"; {number} per cent are {number}%" if not per_cent and 1 < value <= 100 else ""
        raise argparse.ArgumentTypeError(f"must be a share above 0 and at most 1, or 100%, got {text}{hint}")
    return value


def price(text: str) -> float:
    """Read an amount of money above 0."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def densities(text: str) -> list[float]:
    """Read shares, separated by commas, in ascending order."""
    return sorted(share(part) for part in text.split(","))


def thread_counts(text: str) -> list[int]:
    """Read numbers of threads, where ``all`` is one for each core; each number once."""
    return list(dict.fromkeys(cores() if part == "all" else numbers(part)[0] for part in text.split(",")))


def choices(*allowed: str) -> Callable[[str], list[str]]:
    """Make a type that reads names separated by commas, each of them one of `allowed`."""

    def read(text: str) -> list[str]:
        parts: Sequence[str] = text.split(",")
        for part in parts:
            if part not in allowed:
                raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(allowed)}")
        return list(parts)

    return read
