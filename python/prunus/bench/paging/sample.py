"""What one run of one contestant found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Attributes
    ----------
    seconds : float
        Wall time of the calls that count.
    used : int
        Bytes that the caller asked for: read and written.
    read, written : int
        Bytes that went between the drive and the process, as the kernel counts them.
    blocks : int
        Units in which the caller asked (blocks, rows, or MiB of a scan).
    requests, calls : int
        Requests to the drive, and system calls that made them; 0 where nobody counts.
    depth : float
        Mean number of requests in flight; 0 where nobody counts.
    cpu : float
        Seconds of processor time, of all threads and in the kernel.
    memory : int
        Peak of resident bytes, less those at the start and less results that the caller holds.
    cached : float
        Share of the file that was in the page cache afterwards and not before.
    engine : str
        How the file was read.
    series : dict of str to list of float
        What a case counts besides.
    """

    seconds: float
    used: int
    read: int = 0
    written: int = 0
    blocks: int = 0
    requests: int = 0
    calls: int = 0
    depth: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    cached: float = 0.0
    engine: str = ""
    series: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Bytes of use a second."""
        return self.used / max(self.seconds, 1e-9)

    @property
    def amplification(self) -> float:
        """Bytes moved for each byte of use."""
        return (self.read + self.written) / max(self.used, 1)

    @property
    def cpu_per_block(self) -> float:
        """Seconds of processor time for each block."""
        return self.cpu / max(self.blocks, 1)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a sample of what another process printed.

        Raises
        ------
        ValueError
            If values are missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if unknown := set(values) - names:
            raise ValueError(f"a sample with {sorted(unknown)}, which none has")
        if missing := {"seconds", "used"} - set(values):
            raise ValueError(f"a sample without {sorted(missing)}")
        return cls(**values)

    def with_cached(self, share: float) -> Self:
        """Return the same run with what was found in the page cache."""
        return replace(self, cached=share)
