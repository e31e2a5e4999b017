# What CI calls. Run in a virtual environment that has the package, its `test` extra and requirements-dev.txt.

set shell := ["bash", "-euo", "pipefail", "-c"]
set windows-shell := ["bash", "-euo", "pipefail", "-c"]

# Processes that compile kernels for GPUs.
jobs := '2'

# List the recipes.
default:
    @just --list

# Formatting, lints and types of both languages, and the stub of the compiled module.
check: check-rust check-python stub

# Rust: format and clippy, where a warning is an error.
check-rust:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Python: lints, format and strict types.
check-python:
    ruff check .
    ruff format --check .
    mypy

# The committed _core.pyi against the module that is installed.
stub:
    python -m mypy.stubtest --mypy-config-file pyproject.toml prunus._core

# Everything that runs code; pytest comes last, so that its summary is the last line.
test: test-rust doc levels io
    pytest

# Unit and property tests of the crates.
test-rust:
    cargo test --workspace --locked

# Examples in the README and in docstrings.
doc:
    pytest --doctest-glob='*.md' README.md
    pytest --doctest-modules --pyargs prunus

# The engine and property suites on every SIMD level of this CPU but the best, which all other tests run on. Indexing
# a file has no vectors in it.
levels:
    @levels=$(python -c 'from prunus import _core; print(*(x for x in _core.available_levels() if x != _core.level()))'); \
    for level in $levels; do \
        echo "SIMD level $level"; \
        PRUNUS_SIMD=$level pytest -q tests/engines tests/property --ignore=tests/property/paged; \
    done

# Files and arrays on disk on the I/O engines that serve where io_uring or direct I/O is refused.
io:
    @for engine in direct buffered; do \
        echo "I/O engine $engine"; \
        PRUNUS_IO=$engine pytest -q tests/unit/paged tests/unit/test_paged_arrays.py tests/unit/test_paged_pagers.py \
            tests/unit/test_paged_checksums.py tests/faults/test_pager_memory.py tests/faults/test_two_processes.py; \
    done

# All tests of faults, with 200 processes killed by each test that kills some; the counts are printed at the end.
faults:
    cargo test -p prunus-pager --locked --test faults --test survival --test system
    PRUNUS_KILLS=200 pytest tests/faults

# A wheel that keeps to the stable ABI and needs nothing but NumPy and ml_dtypes.
wheel:
    bash .ci/wheel

# One quick round of a few asv benchmarks: they still run. `just bench .` runs all of them.
bench pattern='float32.*, 32, 0\.1|Overhead':
    cd benches && asv machine --yes >/dev/null && asv run --python=same --quick --show-stderr --bench '{{pattern}}'

# Side by side with NumPy, torch and SciPy, whichever are installed.
peers *arguments:
    python -m prunus bench peers {{arguments}}

# Kernels for GPUs, without one: run in Triton's interpreter, and compiled ahead of time for three architectures.
cuda *tests='tests/cuda tests/engines tests/training':
    TRITON_INTERPRET=1 PRUNUS_BRIEF=1 pytest -q -k "cuda or on_the_device or learning_device" {{tests}}
    python -m prunus cuda compile --jobs {{jobs}}

# All of the engine suite in Triton's interpreter, in every dtype, and everything that may be compiled.
cuda-all:
    TRITON_INTERPRET=1 pytest -q -k "cuda or on_the_device or learning_device" tests/cuda tests/engines tests/training
    python -m prunus cuda compile --all --jobs {{jobs}}
