"""Memory cgroups: a process that may hold no more than so many bytes, its page cache included (Linux)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["NoLimitError", "limited"]

_ROOT = Path("/sys/fs/cgroup")


class NoLimitError(RuntimeError):
    """The system, or the user's rights, have no memory cgroup to give."""


def _own(controller: str) -> str:
    """Return the path of this process's group in a hierarchy; "" names the unified one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def _places() -> list[tuple[Path, str]]:
    """Return folders in which a group may be made, and the file that holds its limit."""
    old = _ROOT / "memory"
    if (old / "memory.limit_in_bytes").exists():
        own = old / _own("memory").lstrip("/")
        return [(own, "memory.limit_in_bytes"), (old, "memory.limit_in_bytes")]
    own = _ROOT / _own("").lstrip("/")
    # A group with processes cannot have children with controllers: its parent may.
    return [(place, "memory.max") for place in (own, own.parent, _ROOT) if _ROOT in (place, *place.parents)]


@contextmanager
def limited(nbytes: int) -> Iterator[Path]:
    """Make a group whose processes hold at most `nbytes` together.

    Yields
    ------
    Path
        The file into which a process writes its id to join.

    Raises
    ------
    NoLimitError
        If none can be made; says why.
    """
    said = ""
    for place, name in _places():
        group = place / f"prunus-bench-{os.getpid()}"
        try:
            if name == "memory.max":
                (place / "cgroup.subtree_control").write_text("+memory")
            group.mkdir(exist_ok=True)
        except OSError as error:
            said = f"{error.strerror} ({place})"
            continue
        try:
            try:
                (group / name).write_text(str(nbytes))
            except OSError as error:
                said = f"{error.strerror} ({group / name})"
                continue
            yield group / "cgroup.procs"
            return
        finally:
            with suppress(OSError):  # a process is still in it
                group.rmdir()
    raise NoLimitError(f"no memory cgroup can be made here: {said or 'there is none'}")
