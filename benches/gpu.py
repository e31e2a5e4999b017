"""The CUDA engine on this machine's GPU, beside cuBLAS and others: `python benches/gpu.py --help`.

The same as `python -m prunus bench gpu`, in less than ten minutes by default. It runs where prunus is
installed, and in a clone that has the compiled module beside its Python files.
"""

import sys
from pathlib import Path


def main():
    try:
        import prunus  # noqa: F401
    except ImportError:
        # Not installed: the clone may hold all of it.
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
    try:
        from prunus.cli import main as command
    except ImportError as error:
        return (
            f"benches/gpu.py needs prunus and its compiled module ({error}): pip install '.[cuda,plot]' in a "
            "clone, or put the module, _core.abi3.so, into python/prunus"
        )
    return command(["bench", "gpu", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
