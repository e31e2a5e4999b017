"""A text that every Python has, for calibration and for judging: Python's own reference."""

__all__ = ["text"]


def text() -> str:
    """Return the help topics of Python's reference, more than 100,000 tokens, in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
