"""One run in a fresh process: ``python -m prunus.bench.paging.worker TASK ARGUMENTS``, both words of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.bench.paging.sample import Sample

__all__ = ["WorkerError", "main", "work"]

_SECONDS = 900


class WorkerError(RuntimeError):
    """A run failed."""


def work(
    task: str, arguments: dict[str, Any], *, engine: str | None = None, group: Path | None = None
) -> Sample:
    """Do a task in a fresh process.

    Parameters
    ----------
    task : str
        A name of `tasks` or `rivals`.
    arguments : dict
        What the task takes.
    engine : str, optional
        What ``PRUNUS_IO`` pins.
    group : Path, optional
        The file of a memory cgroup by which a process joins it.

    Raises
    ------
    WorkerError
        If the process fails; the message has its last words.
    """
    line = [sys.executable, "-m", __name__, json.dumps(task), json.dumps(arguments)]
    if group is not None:
        # The shell joins before Python starts, so that all of its memory counts.
        line = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group), *line]
    environment = dict(os.environ)
    if engine is not None:
        environment["PRUNUS_IO"] = engine
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerError(f"{task}: not done after {_SECONDS} s") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        why = words[-1] if words else f"exit status {done.returncode}"
        raise WorkerError(f"{task}: {'killed' if done.returncode in (-9, 137) else why}")
    try:
        return Sample.from_json(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError) as error:
        raise WorkerError(f"{task}: printed {done.stdout[-200:]!r}, which is no sample") from error


def main(words: Sequence[str]) -> int:
    """Do one task and print its sample."""
    from prunus.bench.paging import layers, rivals, tasks
    from prunus.bench.paging.meter import Meter

    task, arguments = (json.loads(word) for word in words)
    found = (tasks.TASKS | layers.TASKS | rivals.TASKS)[task](arguments, Meter())
    print(json.dumps(found.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
