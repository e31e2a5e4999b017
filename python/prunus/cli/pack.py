"""``python -m prunus pack``: a file of tensors into one that prunus reads best."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from prunus.cli._arguments import Commands, share
from prunus.cli._files import readable, refusing, writable
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus._dtypes import DType
    from prunus.paged.sources import Source

__all__ = ["add", "run"]

_DTYPES = ("float32", "float64", "float16", "bfloat16")
_DESCRIPTION = """\
Read .safetensors, .npy or GGUF and write .safetensors with aligned data, or of one dense tensor .npy. With
--blocksize, matrices are stored as blocks: those that have a non-zero, or with --density the strongest ones.
Memory stays small."""


def _blocksize(text: str) -> tuple[int, int]:
    """Read ``32`` or ``32x16``."""
    parts = text.lower().split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a block size such as 32 or 32x16: {text!r}") from None
    if len(sizes) > 2 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"a block size is one or two numbers above 0: {text!r}")
    return sizes[0], sizes[-1]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "pack", help="convert .npy, GGUF or .safetensors, and matrices to blocks", description=_DESCRIPTION
    )
    arg = command.add_argument
    arg("input", help="a .safetensors, .npy or GGUF file, or a checkpoint in several files")
    arg(
        "output",
        help="the file to write, .safetensors, or .npy for one dense tensor; appears whole or not at all",
    )
    arg(
        "--blocksize",
        type=_blocksize,
        default=None,
        metavar="ROWS[xCOLUMNS]",
        help="store matrices as blocks",
    )
    arg(
        "--density",
        type=share,
        default=None,
        help="share of blocks to keep, such as 0.1 or 10%% (with --blocksize)",
    )
    arg("--dtype", choices=_DTYPES, default=None, help="convert floats (default: as they are)")
    arg("--names", default="*", help="which tensors, as name patterns with * separated by commas; others are "
        "copied as they are (default: %(default)s)")  # fmt: skip
    arg("--only", action="store_true", help="leave out the tensors that --names does not name")
    arg("--checksums", action="store_true", help="add a checksum for each page of 64 KiB")
    command.set_defaults(run=run)


@dataclass(slots=True)
class _Job:
    """What is going to be written."""

    parts: "dict[str, Source]" = field(default_factory=dict)
    sparse: dict[str, Any] = field(default_factory=dict)

    def add_part(self, name: str, source: "Source") -> None:
        if name in self.parts:
            raise ValueError(f"two tensors are called {name!r}")
        self.parts[name] = source

    def add_blocks(
        self, name: str, values: "Source", indices: Any, indptr: Any, shape: Any, blocksize: Any
    ) -> None:
        from prunus.paged.headers import PARTS
        from prunus.paged.sources import source_of

        for part, source in zip(
            PARTS, (values, source_of(indices, name), source_of(indptr, name)), strict=True
        ):
            self.add_part(f"{name}.{part}", source)
        self.sparse[name] = {"shape": list(shape), "blocksize": list(blocksize)}


def run(options: argparse.Namespace) -> int:
    """Convert the file and say what became of it."""
    from prunus._format import size_text
    from prunus._progress import Progress
    from prunus.paged.checksums import PAGE
    from prunus.paged.endings import is_npy_name, require_safetensors
    from prunus.paged.inputs import open_tensors
    from prunus.paged.pagers import default_pager
    from prunus.paged.save import ALIGN, save_npy, save_tensors

    if options.density is not None and options.blocksize is None:
        raise CommandError("--density needs --blocksize: it is a share of blocks")
    npy = is_npy_name(options.output)
    if npy and (options.checksums or options.blocksize is not None):
        what = "checksums" if options.checksums else "blocks"
        raise CommandError(f"{readable(options.output)}: .npy has no place for {what}; write .safetensors")
    with refusing():
        if not npy:
            require_safetensors(options.output)
        writable(options.output)
        arrays, metadata = open_tensors(options.input)
        patterns = options.names.split(",")
        chosen = [name for name in arrays if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not chosen and len(arrays):
            raise CommandError(f"{readable(options.input)}: no tensor has a name like {options.names}")
        taken = chosen if options.only else list(arrays)
        if npy and (len(taken) != 1 or not _is_dense(arrays[taken[0]])):
            what = "blocks" if len(taken) == 1 else f"{len(taken)} tensors"
            raise CommandError(
                f"{readable(options.output)}: .npy holds one dense tensor, got {what}; write .safetensors, "
                "or choose one with --names NAME --only"
            )
        read = sum(arrays[name].nbytes for name in taken)
        twice = sum(arrays[name].nbytes for name in chosen if _is_matrix(arrays[name], options))
        with Progress(read + twice, "pack") as bar:
            job = _plan(arrays, taken, set(chosen), options, lambda name, n: bar.step(readable(name), n))
            if npy:
                (source,) = job.parts.values()
                save_npy(options.output, source, ALIGN, default_pager())
            else:
                page = PAGE if options.checksums else None
                save_tensors(options.output, job.parts, job.sparse, metadata, page, ALIGN, default_pager())
    written = sum(one.dtype.itemsize * _count(one.shape) for one in job.parts.values())
    print(
        f"{readable(options.output)}: {len(taken)} arrays, {len(job.sparse)} of them in blocks, "
        f"{size_text(written)} of {size_text(read)}"
    )
    if npy and metadata:
        print(f"left out, as .npy has no place for them: the metadata {readable(', '.join(metadata))}")
    return 0


def _count(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _is_matrix(array: Any, options: argparse.Namespace) -> bool:
    """Say whether an array is going to be cut into blocks."""
    from prunus._dtypes import FLOATS

    blocks = options.blocksize is not None and _is_dense(array)
    return blocks and len(array.shape) == 2 and array.dtype in FLOATS


def _is_dense(array: Any) -> bool:
    """Say whether an array is one tensor, and no blocks or layer."""
    from prunus.paged.layers import PagedFFN
    from prunus.paged.sparse import PagedBSR

    return not isinstance(array, (PagedBSR, PagedFFN))


def _plan(
    arrays: Mapping[str, Any],
    taken: list[str],
    chosen: set[str],
    options: argparse.Namespace,
    told: Callable[[str, int], None],
) -> _Job:
    """Decide what each tensor becomes; of those that are cut into blocks the pattern is found now."""
    from functools import partial

    from prunus._dtypes import FLOATS, as_dtype
    from prunus.paged.prune import prune_stream
    from prunus.paged.sources import blocks_of
    from prunus.paged.sparse import PagedBSR

    job = _Job()
    for name in taken:
        array = arrays[name]
        dtype = array.dtype
        if options.dtype is not None and name in chosen and dtype in FLOATS:
            dtype = as_dtype(options.dtype)
        if isinstance(array, PagedBSR):
            values, indices, indptr, shape, blocksize = blocks_of(array)
            job.add_blocks(name, _cast(values, dtype, partial(told, name)), indices, indptr, shape, blocksize)
        elif name in chosen and _is_matrix(array, options):
            found = prune_stream(array, options.blocksize, options.density, dtype, partial(told, name))
            job.add_blocks(name, found.values, found.indices, found.indptr, found.shape, found.blocksize)
        else:
            job.add_part(name, _dense(array, dtype, partial(told, name)))
    return job


def _dense(array: Any, dtype: "DType", told: Callable[[int], None]) -> "Source":
    from prunus.paged.sources import Source, cut

    shape = tuple(array.shape)
    return _cast(Source(array.dtype, shape, lambda: cut(array, shape, array.dtype.itemsize)), dtype, told)


def _cast(source: "Source", dtype: "DType", told: Callable[[int], None]) -> "Source":
    """Convert the values on their way, and tell how many bytes came."""
    from collections.abc import Iterator

    from prunus._dtypes import Array
    from prunus.paged.sources import Source

    def pieces() -> Iterator[Array]:
        for piece in source.pieces():
            told(piece.nbytes)
            yield piece.astype(dtype, copy=False)

    return Source(dtype, source.shape, pieces)
