"""The error that ends a command with a message instead of a traceback."""

__all__ = ["CommandError"]


class CommandError(Exception):
    """A command can't do its work, and its user can do something about it."""
