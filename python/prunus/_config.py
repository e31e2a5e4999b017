"""What prunus runs on and what it chose: `show_config`."""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TextIO

from prunus import _core
from prunus._threads import get_num_threads

__all__ = ["Cpu", "cores", "cpu", "show_config", "size_text"]

# Not every system tells the size of its caches; a common size of a shared cache then.
_UNKNOWN_LAST_LEVEL = 32 << 20
_ORIGINS = {
    "detected": "the best that this CPU has; PRUNUS_SIMD pins another",
    "PRUNUS_SIMD": "pinned by PRUNUS_SIMD",
    "set_level": "set in this process",
}


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
    origin : str
        How the level was chosen: ``"detected"``, ``"PRUNUS_SIMD"`` or ``"set_level"``.
    cores : int
        Cores that this process may use.
    caches : dict
        Bytes of the data caches, ``"L1"`` to ``"L3"``, those that are known.
    other : dict
        Everything else that the compiled part tells, for instance its cost constants.
    """

    name: str
    features: tuple[str, ...]
    level: str
    origin: str
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
        known = [f"{name} {size_text(size)}" for name, size in self.caches.items()]
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


def cores() -> int:
    """Count the cores that this process may run on."""
    # The affinity mask, not the machine: in a container or under taskset they differ.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu() -> Cpu:
    """Ask the compiled part about the processor."""
    info: dict[str, Any] = dict(_core.cpu_info())
    level = str(info.pop("level"))
    return Cpu(
        name=str(info.pop("model")) or "unknown CPU",
        features=tuple(info.pop("features")),
        level=level,
        origin=str(info.pop("level_origin")),
        cores=cores(),
        caches={f"L{depth}": int(size) for depth, size in info.pop("caches")},
        other=info,
    )


def _whose_threads() -> str:
    """Say whose threads tasks run on where they are not the engine's own."""
    teams = sys.modules.get("prunus.torch.teams")
    return ", torch's: it has an OpenMP runtime" if teams is not None and teams.borrowed() else ""


def show_config(verbose: bool = False, file: TextIO | None = None) -> None:
    """Print versions, the SIMD level in use and why, threads, the CPU and its caches.

    Nothing is chosen silently: whatever changes which code runs is in this text.

    Parameters
    ----------
    verbose : bool
        Also print the path that the last product took on this thread, and the cost constants that choose a
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
    why = _ORIGINS.get(this.origin, this.origin)
    asked = os.environ.get("PRUNUS_NUM_THREADS")
    teams = sys.modules.get("prunus.torch.teams")
    many = "as many as torch; " if teams is not None and teams.followed() else ""
    threads = f"PRUNUS_NUM_THREADS={asked}" if asked else f"{many}PRUNUS_NUM_THREADS or num_threads() sets it"
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
        f"threads     {get_num_threads()} of {this.cores} cores ({threads}){_whose_threads()}",
        f"CPU         {this.name}",
        f"features    {', '.join(this.features) or 'unknown'}",
        f"caches      {this.caches_text}",
        f"I/O engine  {_io_choice()}",
        f"GPUs        {_gpus()}",
    ]
    if "prunus.cuda.runtime" in sys.modules:  # a GPU was used: nothing is imported to tell about one
        from prunus.cuda.tuning import summary

        lines.append(f"CUDA tiles  {summary()}")
    if verbose:
        lines.append(f"last path   {_core.last_path() or 'no product yet'}")
        lines += _flat(other)
    return lines


def _io_choice() -> str:
    """Say which I/O engine serves files here, and why, by opening one without a name."""
    try:
        with tempfile.NamedTemporaryFile(prefix="prunus-") as file:
            opened = _core.Pager(1 << 16).open(file.name, "r")
            return f"{opened.engine} for files in {os.path.dirname(file.name)} ({opened.why})"
    except (OSError, ValueError) as error:
        return f"none: {error}"


def _gpus() -> str:
    """Say what the device "cuda" would be, and with which versions, or what it lacks."""
    from prunus.cuda.versions import installed, libraries, missing

    if not installed():
        return f"none: {' and '.join(missing())} not installed (pip install 'prunus[cuda]')"
    from prunus._errors import PrunusError
    from prunus.cuda.rates import places
    from prunus.cuda.runtime import is_likely

    if not is_likely():
        return "none: there is no NVIDIA driver (TRITON_INTERPRET=1 has kernels interpreted on the CPU)"
    try:
        found = ", ".join(f"{one} ({one.name}, {one.arch})" for one in places())
    except PrunusError as error:
        return f"none: {error}"
    torch, triton = libraries().versions
    return f"{found}; torch {torch}, Triton {triton}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Write nested values one a line."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix + name:<11} {value}")
    return lines
