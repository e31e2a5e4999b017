"""What a comparison measures, as plain records that a report, a CSV file or a plot can be made from."""

from dataclasses import dataclass

__all__ = ["Case", "Record"]


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that contestants of one race have in common.

    Attributes
    ----------
    op : str
        ``"dsd"`` (sparse @ dense), ``"sdd"`` (dense @ dense at chosen blocks) or ``"ssd"`` (sparse @ sparse).
    dtype : str
        Type of every operand.
    layout : str
        ``"wx"``: ``W @ X`` with X in C order; ``"xwt"``: ``x @ W.T``, one row for each token.
    threads : int
        Threads that every library may use.
    block : int
        Height and width of a block of W.
    columns : int
        Columns of X (rows of x), or the inner dimension of ``"sdd"``; 0 for ``"ssd"``.
    size : int
        Height and width of W.
    """

    op: str
    dtype: str
    layout: str
    threads: int
    block: int
    columns: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """One contestant's result in one race.

    Attributes
    ----------
    case : Case
        The race.
    density : float
        Share of blocks present, 0 to 1; 1 for dense contestants.
    contestant : str
        Who ran, for instance ``"torch bsr"``.
    dense : bool
        Whether it multiplied zeros as well.
    median, minimum : float
        Seconds.
    rounds : int
        Number of times it ran.
    flops : float
        Useful operations of one call: of the whole product if `dense`, else of the stored blocks.
    flushed : bool
        Whether the caches were flushed before every call.
    error : float
        Largest difference from the reference, relative to its largest value.
    """

    case: Case
    density: float
    contestant: str
    dense: bool
    median: float
    minimum: float
    rounds: int
    flops: float
    flushed: bool
    error: float

    @property
    def gflops(self) -> float:
        """Useful operations, in 10⁹ a second."""
        return self.flops / self.median * 1e-9
