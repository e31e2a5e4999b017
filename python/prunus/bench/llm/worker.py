"""One run in a fresh process: ``python -m prunus.bench.llm.worker TASK ARGUMENTS``, arguments as JSON.

It prints lines of JSON: ``{"step": n}`` as it goes on, and at the end ``{"found": ...}``.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["WorkerError", "main", "work"]


class WorkerError(RuntimeError):
    """A run failed."""


def work(
    task: str,
    arguments: Mapping[str, Any],
    *,
    group: Path | None = None,
    told: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Do a task in a fresh process.

    Parameters
    ----------
    task : str
        A name of `tasks.TASKS`.
    arguments : mapping
        What the task takes.
    group : Path, optional
        The file of a memory cgroup by which a process joins it.
    told : callable
        Told of steps as they are done, such as tokens.

    Returns
    -------
    dict
        What the task found.

    Raises
    ------
    WorkerError
        If the process fails; the message has its last words.
    """
    line = [sys.executable, "-m", __name__, task, json.dumps(arguments)]
    if group is not None:
        # The shell joins before Python starts, so that all of its memory counts.
        line = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group), *line]
    found: dict[str, Any] | None = None
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8") as process,
    ):
        try:
            assert process.stdout is not None
            for said in process.stdout:
                values = json.loads(said)
                if "step" in values:
                    told(values["step"])
                found = values.get("found", found)
            process.wait()
        except BaseException:  # Ctrl-C too: nobody would ask for what it finds
            process.kill()
            raise
        errors.seek(0)
        words = errors.read().strip().splitlines()
    if process.returncode or found is None:
        why = words[-1] if words else f"exit status {process.returncode}"
        raise WorkerError(f"{task}: {'killed' if process.returncode in (-9, 137) else why}")
    return found


def main(words: Sequence[str]) -> int:
    """Do one task and print what it found."""
    from prunus.bench.llm.tasks import TASKS

    def say(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    task, arguments = words
    say(found=TASKS[task](json.loads(arguments), lambda count: say(step=count)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
