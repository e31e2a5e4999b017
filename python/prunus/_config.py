"""What prunus runs on and what it chose: `show_config`."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TextIO

from prunus import _core
from prunus._threads import get_num_threads

__all__ = ["Cpu", "cpu", "show_config", "size_text"]

_CACHES = ("l1d", "l2", "l3")
# Not every system tells the size of its caches; a common size of a shared cache then.
_UNKNOWN_LAST_LEVEL = 32 << 20


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor, as the compiled part sees it.

    Attributes
    ----------
    name : str
        Model name.
    features : tuple of str
        Instruction sets that matter to the kernels.
    level : str
        SIMD level in use.
    cores : int
        Cores that this process may use.
    caches : dict
        Bytes of ``"l1d"``, ``"l2"`` and ``"l3"``, those that are known.
    other : dict
        Everything else that the compiled part tells, for instance its cost constants.
    """

    name: str
    features: tuple[str, ...]
    level: str
    cores: int
    caches: dict[str, int]
    other: dict[str, Any]

    @property
    def last_level(self) -> int:
        """Bytes of the largest cache."""
        return max(self.caches.values(), default=_UNKNOWN_LAST_LEVEL)

    @property
    def caches_text(self) -> str:
        """Caches in words."""
        known = [f"{name.upper()} {size_text(size)}" for name, size in self.caches.items()]
        return ", ".join(known) or "unknown"


def size_text(size: int) -> str:
    """Write a number of bytes for people.

    Examples
    --------
    >>> size_text(49152), size_text(37_486_592)
    ('48 KiB', '35.8 MiB')
    """
    if size < 1 << 20:
        return f"{size / (1 << 10):.3g} KiB"
    return f"{size / (1 << 20):.3g} MiB"


def cpu() -> Cpu:
    """Ask the compiled part about the processor."""
    info: dict[str, Any] = dict(_core.cpu_info())
    caches = {name: int(size) for name in _CACHES if (size := info.pop(name, 0))}
    return Cpu(
        name=str(info.pop("model", "") or "unknown CPU"),
        features=tuple(info.pop("features", ())),
        level=_core.level(),
        cores=int(info.pop("cores", 0)) or os.cpu_count() or 1,
        caches=caches,
        other=info,
    )


def show_config(verbose: bool = False, file: TextIO | None = None) -> None:
    """Print versions, the SIMD level in use and why, threads, the CPU and its caches.

    Nothing is chosen silently: whatever changes which code runs is in this text.

    Parameters
    ----------
    verbose : bool
        Also print the path that the last product took in this process, and the cost constants that choose a
        path.
    file : file object, optional
        Where to print; standard output by default.

    Examples
    --------
    >>> import prunus as pr
    >>> pr.show_config()  # doctest: +ELLIPSIS
    prunus ...
    """
    out = sys.stdout if file is None else file
    print("\n".join(config_lines(verbose)), file=out)


def config_lines(verbose: bool = False) -> list[str]:
    """Make the lines that `show_config` prints."""
    this = cpu()
    pinned = os.environ.get("PRUNUS_SIMD")
    why = (
        f"pinned by PRUNUS_SIMD={pinned}" if pinned else "chosen from what the CPU has; PRUNUS_SIMD pins one"
    )
    asked = os.environ.get("PRUNUS_NUM_THREADS")
    threads = f"PRUNUS_NUM_THREADS={asked}" if asked else "PRUNUS_NUM_THREADS or num_threads() sets it"
    lines = [
        f"prunus      {_core.__version__}",
        f"python      {sys.version.split()[0]}, numpy {version('numpy')}, ml_dtypes {version('ml_dtypes')}",
    ]
    other = dict(this.other)
    if rustc := other.pop("rustc", None):
        lines.append(f"built with  {rustc}")
    lines += [
        f"SIMD level  {this.level} ({why})",
        f"available   {', '.join(_core.available_levels())}",
        f"threads     {get_num_threads()} of {this.cores} cores ({threads})",
        f"CPU         {this.name}",
        f"features    {', '.join(this.features) or 'unknown'}",
        f"caches      {this.caches_text}",
    ]
    if verbose:
        lines.append(f"last path   {_core.last_path() or 'no product yet'}")
        lines += _flat(other)
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Write nested values one a line."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix + name:<11} {value}")
    return lines
