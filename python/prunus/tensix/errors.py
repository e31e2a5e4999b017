"""What can be wrong with a chip, a program or its run: different faults are different exceptions."""

from prunus._errors import PrunusError

__all__ = [
    "DeadlockError",
    "EndlessError",
    "MisusedError",
    "SpecError",
    "TensixError",
    "UndefinedError",
    "UnsupportedError",
]


class TensixError(PrunusError):
    """What the Tensix simulator raises."""


class SpecError(TensixError, ValueError):
    """A description of a chip that is none, or whose figures contradict each other."""


class MisusedError(TensixError, ValueError):
    """A call of the kernel API, or a program, that breaks its rules."""


class UndefinedError(TensixError):
    """Something that hardware leaves undefined: it might give any result there."""


class UnsupportedError(TensixError, NotImplementedError):
    """Something that the chip can do and the simulator cannot, or that this chip lacks."""


class DeadlockError(TensixError):
    """All threads wait; the message says for what."""


class EndlessError(TensixError):
    """A program or a kernel did not end within its limit."""


class Overtime(BaseException):
    """Raised in a kernel that does not come back. No kernel should catch it, so it is no ``Exception``."""
