"""A model's weights, in memory or on disk; what uses them cannot tell.

A packed file holds, in the order in which one token needs them:

===================================  ======================================================================
``layers.I.attention.norm``          (hidden_size,), float32
``layers.I.attention.qkv``           rows that give queries, keys and values: one panel
``layers.I.attention.qkv.bias``      where the model has them, float32
``layers.I.attention.out``           (hidden_size, heads * head_dim), and ``.out.bias``
``layers.I.ffn.norm``                (hidden_size,), float32
``layers.I.ffn``                     a feed-forward layer as ``FFN.save`` writes: ``.panel`` and ``.bundle``
``norm``                             (hidden_size,), float32
``embeddings``                       (vocab_size, hidden_size)
``output``                           as ``embeddings``; left out where that is the output matrix too
``tokenizer``                        ``tokenizer.json``, as bytes
===================================  ======================================================================

and as metadata ``llm`` (the format), ``llm.config``, and ``llm.speech``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

import numpy as np

from prunus._arrays import side_by_side
from prunus._dtypes import BFLOAT16, F32, Array, DType
from prunus._errors import FormatError
from prunus.llm.checkpoint import EMBEDDINGS, NORM, OUTPUT, Checkpoint, Speech
from prunus.llm.config import Config
from prunus.paged.array import PagedArray
from prunus.paged.files import File
from prunus.paged.tables import Table
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.packed import FFN

__all__ = ["FORMAT", "SPEECH", "Layer", "Weights", "from_checkpoint", "from_file", "speech_of"]

FORMAT: Final = "1"
CONFIG: Final = "llm.config"
SPEECH: Final = "llm.speech"
TOKENIZER: Final = "tokenizer"
DTYPES: Final = (F32, BFLOAT16)


class Layer(NamedTuple):
    """One layer. Matrices are (out, in): arrays, or tables on disk, as ``ffn`` may be."""

    attention_norm: Array
    qkv: Any
    qkv_bias: Array | None
    out: Any
    out_bias: Array | None
    ffn_norm: Array
    ffn: FeedForward


class Weights:
    """All weights of a model.

    Attributes
    ----------
    config : Config
        Sizes.
    layers : list of Layer
        In order.
    norm : ndarray of float32
        Scale of what the output matrix gets.
    embeddings : ndarray or PagedArray
        (vocab_size, hidden_size).
    output : ndarray or Table
        Likewise; may be the same values.
    file : File, optional
        Where those are that are on disk.
    """

    def __init__(
        self,
        config: Config,
        layers: list[Layer],
        norm: Array,
        embeddings: Any,
        output: Any,
        file: File | None = None,
    ) -> None:
        self.config, self.layers, self.norm = config, layers, norm
        self.embeddings, self.output, self.file = embeddings, output, file

    @property
    def dtype(self) -> DType:
        """Dtype of the matrices."""
        found: DType = self.embeddings.dtype
        return found

    @property
    def decide(self) -> str:
        """Which matrix of the feed-forward layers decides."""
        return self.layers[0].ffn.decide

    @property
    def nbytes(self) -> int:
        """Bytes that one token's pass through all layers touches, were nothing pruned.

        On disk with the padding between bundles, which is read.
        """
        each = (int(one.qkv.nbytes) + int(one.out.nbytes) + one.ffn.nbytes for one in self.layers)
        return int(self.output.nbytes) + sum(each)

    @property
    def parameters(self) -> int:
        """How many values the model has learnt."""
        config, count = self.config, 0
        for one in self.layers:
            count += int(np.prod(one.qkv.shape) + np.prod(one.out.shape)) + 2 * config.hidden_size
            count += 3 * config.hidden_size * config.intermediate_size
            count += sum(len(bias) for bias in (one.qkv_bias, one.out_bias) if bias is not None)
        tables = 1 if config.tie_word_embeddings else 2
        return count + config.hidden_size + tables * config.vocab_size * config.hidden_size

    def embed(self, tokens: Array) -> Array:
        """Return the embeddings of tokens, (tokens, hidden_size), float32."""
        rows: Array = self.embeddings[tokens]
        return rows.astype(np.float32)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self.file is not None:
            self.file.close()


def _gathered(layers: list[Layer]) -> list[Layer]:
    """Return layers in memory whose attention matrices lie side by side."""
    made = side_by_side([matrix for layer in layers for matrix in (layer.qkv, layer.out)])
    return [layer._replace(qkv=made[2 * i], out=made[2 * i + 1]) for i, layer in enumerate(layers)]


def matrices(checkpoint: Checkpoint, layer: int, dtype: DType) -> Array:
    """Return the rows that give queries, keys and values."""
    at = f"model.layers.{layer}.self_attn."
    return np.concatenate([checkpoint.read(f"{at}{letter}_proj.weight", dtype) for letter in "qkv"])


def biases(checkpoint: Checkpoint, layer: int) -> Array | None:
    """Return what is added to queries, keys and values, or None if the model has no such biases."""
    config = checkpoint.config
    heads = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
    names = [f"model.layers.{layer}.self_attn.{letter}_proj.bias" for letter in "qkv"]
    if not any(name in checkpoint.names for name in names):
        return None
    return np.concatenate(
        [
            checkpoint.read(name) if name in checkpoint.names else np.zeros(count * config.head_dim, F32)
            for name, count in zip(names, heads, strict=True)
        ]
    )


def from_checkpoint(
    checkpoint: Checkpoint, dtype: DType, decide: str, told: Any = lambda name, size: None
) -> Weights:
    """Read all weights into memory.

    Parameters
    ----------
    checkpoint : Checkpoint
        Where they are.
    dtype : dtype
        float32 or bfloat16.
    decide : {"up", "gate", "predictor"}
        Which matrix of a feed-forward layer decides; as :meth:`prunus.FFN.pack`.
    told : callable, optional
        Told the name and the bytes of what was read.
    """
    config, layers = checkpoint.config, []

    def read(name: str, kind: DType = F32) -> Array:
        values = checkpoint.read(name, kind)
        told(name, values.nbytes)
        return values

    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        qkv, bias = matrices(checkpoint, i, dtype), biases(checkpoint, i)
        told(f"{at}self_attn", qkv.nbytes)
        out_bias = f"{at}self_attn.o_proj.bias"
        ffn = FFN.pack(
            read(f"{at}mlp.up_proj.weight", dtype),
            read(f"{at}mlp.down_proj.weight", dtype),
            read(f"{at}mlp.gate_proj.weight", dtype),
            decide=decide,
            dtype=dtype,
        ).apart()
        layers.append(
            Layer(
                read(f"{at}input_layernorm.weight"),
                qkv,
                bias,
                read(f"{at}self_attn.o_proj.weight", dtype),
                read(out_bias) if out_bias in checkpoint.names else None,
                read(f"{at}post_attention_layernorm.weight"),
                ffn,
            )
        )
    embeddings = read(EMBEDDINGS, dtype)
    output = embeddings if config.tie_word_embeddings else read(OUTPUT, dtype)
    return Weights(config, _gathered(layers), read(NORM), embeddings, output)


def from_file(file: File, *, resident: bool, told: Any = lambda name, size: None) -> Weights:
    """Return the weights of a packed model.

    Parameters
    ----------
    file : File
        An open packed model.
    resident : bool
        Whether all are read into memory now; else the matrices stay on disk.
    told : callable, optional
        Told the name and the bytes of what was read.

    Raises
    ------
    FormatError
        If it is no packed model, or one of another format.
    """
    found = file.metadata.get("llm")
    if found is None:
        raise FormatError(f"{file.path}: expected a model that `python -m prunus llm pack` wrote")
    if found != FORMAT:
        raise FormatError(f"{file.path}: a packed model of format {found!r}, this version reads {FORMAT!r}")
    config = Config.from_json(file.metadata.get(CONFIG, ""))

    def get(name: str, shape: Sequence[int] | None = None) -> Any:
        array = _dense(file, name)
        if shape is not None and array.shape != tuple(shape):
            raise FormatError(f"{file.path}: {name} has shape {array.shape}, expected {tuple(shape)}")
        return array

    def matrix(name: str, *shape: int) -> Any:
        array = get(name, shape)
        if resident:
            told(name, array.nbytes)
            return array.load()
        return Table.of(array)

    def vector(name: str, size: int) -> Array:
        values: Array = get(name, (size,)).load()
        return values

    def maybe(name: str, size: int) -> Array | None:
        return vector(name, size) if name in file else None

    def feed_forward(name: str) -> FeedForward:
        ffn = file.layer(name, "none")
        sizes = (config.intermediate_size, config.hidden_size, config.hidden_size, True)
        if (ffn.hidden, ffn.features, ffn.out_features, ffn.gated) != sizes:
            raise FormatError(f"{file.path}: {name} is {ffn!r}, expected other sizes")
        if not resident:
            return ffn
        told(name, ffn.nbytes)
        return ffn.load().apart()

    size, rows = config.hidden_size, config.query_size + 2 * config.key_size
    layers = [
        Layer(
            vector(f"layers.{i}.attention.norm", size),
            matrix(f"layers.{i}.attention.qkv", rows, size),
            maybe(f"layers.{i}.attention.qkv.bias", rows),
            matrix(f"layers.{i}.attention.out", size, config.query_size),
            maybe(f"layers.{i}.attention.out.bias", size),
            vector(f"layers.{i}.ffn.norm", size),
            feed_forward(f"layers.{i}.ffn"),
        )
        for i in range(config.num_hidden_layers)
    ]
    embeddings = get("embeddings", (config.vocab_size, size))
    if resident:
        layers = _gathered(layers)
        told("embeddings", embeddings.nbytes)
        embeddings = embeddings.load()
    if not config.tie_word_embeddings:
        output = matrix("output", config.vocab_size, size)
    else:
        output = embeddings if resident else Table.of(embeddings)
    norm = vector("norm", size)
    return Weights(config, layers, norm, embeddings, output, None if resident else file)


def speech_of(file: File) -> Speech:
    """Return a packed model's tokenizer and what belongs to it.

    Raises
    ------
    FormatError
        If it is damaged.
    """
    try:
        told = json.loads(file.metadata[SPEECH])
        text = bytes(_dense(file, TOKENIZER).load()).decode("utf-8")
        return Speech(**{**told, "stops": tuple(told["stops"]), "tokenizer": text})
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file.path}: the packed model's tokenizer is damaged: {error!r}") from error


def speech_text(speech: Speech) -> str:
    """Return what the metadata of a packed model hold of it: all but the tokenizer."""
    found = asdict(speech)
    del found["tokenizer"]
    return json.dumps(found, ensure_ascii=False)


def _dense(file: File, name: str) -> PagedArray:
    if name not in file:
        raise FormatError(f"{file.path}: the packed model has no {name}")
    found = file[name]
    if not isinstance(found, PagedArray):
        raise FormatError(f"{file.path}: {name} is stored as {type(found).__name__}, expected a dense array")
    return found
