"""The package's own exception."""


class PrunusError(Exception):
    """A request this build, machine or array cannot serve.

    Raised where the arguments are well formed and of the right type, yet there is no such device, no such
    engine or the array is frozen. Wrong shapes and values raise ``ValueError``, wrong types ``TypeError``.
    """


class FormatError(PrunusError, ValueError):
    """A file is not what its format says: cut, damaged, or of a kind that is not supported.

    The message says what was expected and what came.
    """
