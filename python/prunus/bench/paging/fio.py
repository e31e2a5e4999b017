"""The drive's own rate, measured by fio."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prunus.bench.paging.sample import Sample

__all__ = ["FioError", "Job", "Rater", "best_sequential", "find_fio", "parse", "run"]

Pattern = Literal["read", "randread", "rw"]

# In the order in which they are tried: some kernels and containers have no io_uring.
_ENGINES = ("io_uring", "libaio", "psync")
_SECONDS = 600


class FioError(RuntimeError):
    """fio failed, or printed what is no report."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of the drive, with direct I/O and a cold cache.

    Attributes
    ----------
    path : str
        An existing file.
    pattern : str
        "read" from front to back, "randread" of blocks without repetition, or "rw": front to back, every
        other block (in the mean) written in place.
    block, depth : int
        Bytes of a request, and requests in flight.
    size : int
        Bytes of the file, from its start, that take part.
    amount : int
        Bytes to read and write in all.
    seed : int
        Chooses the blocks.
    registered : bool
        With io_uring: buffers and files are registered with the kernel beforehand, which saves it work.
    """

    path: str
    pattern: Pattern
    block: int
    depth: int
    size: int
    amount: int
    seed: int = 1
    registered: bool = False


Rater = Callable[[Job], Sample]


def find_fio() -> str | None:
    """Return the path of fio, or None where it is not installed."""
    return shutil.which("fio")


def command(program: str, job: Job, engine: str) -> list[str]:
    """Return the command line of a job."""
    options = {
        "name": "prunus",
        "filename": re.sub(r"([:\\])", r"\\\1", job.path),  # a colon would separate two names
        "rw": job.pattern,
        "bs": job.block,
        "size": job.size,
        "io_size": job.amount,
        "ioengine": engine,
        "iodepth": 1 if engine == "psync" else job.depth,
        "numjobs": 1,
        "direct": 1,
        "invalidate": 1,
        "randrepeat": 1,
        "randseed": job.seed,
        "allow_file_create": 0,
        "output-format": "json",
    }
    if job.pattern == "rw":
        options |= {"end_fsync": 1, "overwrite": 1, "refill_buffers": 1, "scramble_buffers": 1}
    if job.registered and engine == "io_uring":
        options |= {"fixedbufs": 1, "registerfiles": 1}
    if engine == "psync":
        # As many processes as requests would be in flight; each takes its share of the file.
        share = job.size // job.depth // job.block * job.block
        options |= {"numjobs": job.depth, "size": share, "offset_increment": share}
        options |= {"io_size": job.amount // job.depth // job.block * job.block, "group_reporting": 1}
    return [program, "--thread", *(f"--{name}={value}" for name, value in options.items())]


def parse(text: str, engine: str = "") -> Sample:
    """Read fio's report.

    Parameters
    ----------
    text : str
        What ``fio --output-format=json`` printed; lines of warnings may come before it.
    engine : str
        Told in the sample.

    Returns
    -------
    Sample
        ``seconds`` is the running time, of reading and writing at once; ``depth`` follows from the mean
        latency (Little's law).

    Raises
    ------
    FioError
        If there is no report, or one of an error, or nothing was moved.
    """
    start = text.find("{\n")
    try:
        found = json.loads(text[max(start, 0) :])
        (job,) = found["jobs"]
        if job.get("error"):
            raise FioError(f"fio: error {job['error']}")
        sides = [job["read"], job["write"]]
        milliseconds = max(side["runtime"] for side in sides)
        requests = sum(side["total_ios"] for side in sides)
        moved = [int(side["io_bytes"]) for side in sides]
        seconds = milliseconds * 1e-3
        busy = sum(side["total_ios"] * _latency(side) for side in sides)
        share = float(job["usr_cpu"]) + float(job["sys_cpu"])
    except (ValueError, KeyError, TypeError) as error:
        raise FioError(f"fio printed no report that can be read ({error!r}): {text[:200]!r}") from error
    if sum(moved) == 0 or milliseconds == 0:
        raise FioError(f"fio moved {sum(moved)} bytes in {milliseconds} ms: too little to tell a rate")
    return Sample(
        seconds=seconds,
        used=sum(moved),
        read=moved[0],
        written=moved[1],
        blocks=requests,
        requests=requests,
        depth=busy / max(seconds, 1e-9),
        cpu=share / 100 * seconds,
        engine=f"fio {engine}".strip(),
    )


def _latency(side: Mapping[str, Any]) -> float:
    """Return the mean seconds from submission to completion."""
    return float(side["clat_ns"]["mean"]) * 1e-9 if side["total_ios"] else 0.0


def run(program: str, engine: str, job: Job) -> Sample:
    """Do a job.

    Raises
    ------
    FioError
        If fio fails; the message has its last words.
    """
    line = command(program, job, engine)
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FioError(f"{program}: {error}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise FioError(f"fio with {engine} failed: {words[-1] if words else done.returncode}")
    return parse(done.stdout, engine)


def choose(program: str, job: Job) -> Rater:
    """Return a function that does jobs with the first engine that this system allows.

    Parameters
    ----------
    program : str
        Path of fio.
    job : Job
        A small job, to try it out.

    Raises
    ------
    FioError
        If no engine works.
    """
    said = []
    for engine in _ENGINES:
        try:
            run(program, engine, job)
        except FioError as error:
            said.append(str(error))
        else:
            return lambda job, engine=engine: run(program, engine, job)  # type: ignore[misc]
    raise FioError("; ".join(said))


def best_sequential(rater: Rater, path: str, size: int, amount: int) -> Job:
    """Find the depth and block at which a file is read from front to back fastest.

    Parameters
    ----------
    rater : callable
        Does a job.
    path : str
        The file.
    size : int
        Bytes of it.
    amount : int
        Bytes that each trial reads.

    Returns
    -------
    Job
        The fastest of the trials, each of which had two turns; it reads all of the file.
    """
    job = Job(path, "read", 1 << 20, 1, size, min(amount, size))
    trials = [replace(job, depth=depth) for depth in (4, 8, 16, 32)]
    trials += [replace(job, block=256 << 10, depth=depth) for depth in (32, 64)]
    best, fastest = 0.0, trials[0]
    for _ in range(2):
        for trial in trials:
            rate = rater(trial).rate
            if rate > best:
                best, fastest = rate, trial
    return replace(fastest, amount=size // fastest.block * fastest.block)
