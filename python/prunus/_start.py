"""Loads the compiled module before anything else does, for the sake of the command line's errors."""

import sys

__all__: list[str] = []

try:
    from prunus import _threads  # noqa: F401 - reads PRUNUS_NUM_THREADS, and with _core PRUNUS_SIMD
except (ImportError, ValueError) as error:
    # While Python looks for what ``python -m prunus`` names, argv starts with "-m": a bad setting in the
    # environment is a wrong argument there, and needs no traceback.
    if sys.argv[:1] != ["-m"] or not str(error).startswith("PRUNUS_"):
        raise
    print(f"python -m prunus: {error}", file=sys.stderr)
    raise SystemExit(2) from None
