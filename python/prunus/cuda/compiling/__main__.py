"""Run ``python -m prunus.cuda.compiling``."""

import sys

from prunus.cli import main

if __name__ == "__main__":
    sys.exit(main(["cuda", "compile", *sys.argv[1:]]))
