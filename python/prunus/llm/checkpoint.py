"""Models as other programs keep them: GGUF files and Hugging Face folders, behind one face.

Tensors go by Hugging Face's names and layout whatever the file's are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from prunus._dtypes import F32, FLOATS, Array, DType
from prunus._errors import FormatError, PrunusError
from prunus.llm.config import Config, UnsupportedModelError
from prunus.llm.vocabulary import Tokenizer
from prunus.llm.vocabulary import from_gguf as tokenizer_from_gguf
from prunus.paged.inputs import GgufArray, open_tensors
from prunus.paged.pagers import Pager
from prunus.paged.sources import Source, cut

__all__ = ["EMBEDDINGS", "NORM", "OUTPUT", "Checkpoint", "Speech", "is_gguf", "open_checkpoint"]

EMBEDDINGS: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm.weight"
OUTPUT: Final = "lm_head.weight"
_GGUF: Final = {
    "token_embd.weight": EMBEDDINGS,
    "output_norm.weight": NORM,
    "output.weight": OUTPUT,
}
_GGUF_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BUDGET: Final = 64 << 20
# What files carry that no part of the model is.
_IDLE: Final = ("rope_freqs.weight", "rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class Speech:
    """How text becomes tokens, and conversations become text.

    Attributes
    ----------
    tokenizer : str
        What a ``tokenizer.json`` holds.
    chat_template : str
        Jinja template of a conversation; empty if there is none.
    bos, eos : str
        The tokens that begin and end a text, as text; empty if there are none.
    stops : tuple of int
        Tokens after which a model has finished.
    """

    tokenizer: str
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    stops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model.

    Attributes
    ----------
    path : str
        File or folder.
    config : Config
        Sizes and constants.
    speech : Speech
        Tokens and conversations.
    names : frozenset of str
        The tensors that are there.
    """

    path: str
    config: Config
    speech: Speech
    _tensors: Mapping[str, Any]
    _names: Mapping[str, str]
    _orders: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The tensors that are there."""
        return frozenset(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> DType:
        """Return a tensor's dtype as it comes out: quantised values are float32."""
        found: DType = self._tensor(name).dtype
        return found

    def read(self, name: str, dtype: DType = F32) -> Array:
        """Return a tensor in memory.

        Raises
        ------
        FormatError
            If it is not there, or holds no numbers that can be converted.
        """
        tensor = self._tensor(name)
        values: Array = tensor[...] if isinstance(tensor, GgufArray) else tensor.load()
        order = self._orders.get(name)
        values = values if order is None else order(values)
        return np.ascontiguousarray(values, dtype)

    def source(self, name: str, dtype: DType, told: Callable[[int], None]) -> Source:
        """Return a tensor as rows that stream, telling how many bytes of it came."""
        tensor = self._tensor(name)
        shape = tuple(tensor.shape)

        def pieces() -> Any:
            if name in self._orders:
                values = self.read(name, dtype)
                told(tensor.nbytes)
                yield values
                return
            for piece in cut(tensor, shape, tensor.dtype.itemsize):
                told(piece.nbytes)
                yield piece.astype(dtype, copy=False)

        return Source(dtype, shape, pieces)

    def _tensor(self, name: str) -> Any:
        try:
            return self._tensors[self._names[name]]
        except KeyError:
            raise FormatError(f"{self.path}: the model has no tensor {name}") from None

    def check(self) -> None:
        """Raise unless all tensors are there in their shapes, and none that would go unused."""
        config = self.config
        known = set()
        for name, shape, needed in self._expected():  # one by one: a file may claim any number of layers
            known.add(name)
            if not needed and name not in self.names:
                continue
            if self.shape(name) != shape:
                raise FormatError(f"{self.path}: {name} has shape {self.shape(name)}, expected {shape}")
            if self.dtype(name) not in FLOATS:
                raise UnsupportedModelError(f"{self.path}: {name} holds {self.dtype(name)}, expected floats")
        if strange := sorted(self.names - known):
            raise UnsupportedModelError(
                f"{self.path}: the model has {strange[0]}, which is no part of a {config.model_type} model "
                f"as it is built here ({len(strange)} such tensors)"
            )

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Yield each tensor's name and shape, and whether a model is none without it."""
        config = self.config
        wide, deep = config.hidden_size, config.intermediate_size
        yield EMBEDDINGS, (config.vocab_size, wide), True
        yield NORM, (wide,), True
        yield OUTPUT, (config.vocab_size, wide), not config.tie_word_embeddings
        for i in range(config.num_hidden_layers):
            at = f"model.layers.{i}."
            rows = {"q": config.query_size, "k": config.key_size, "v": config.key_size}
            for letter, count in rows.items():
                yield f"{at}self_attn.{letter}_proj.weight", (count, wide), True
                yield f"{at}self_attn.{letter}_proj.bias", (count,), False
            yield f"{at}self_attn.o_proj.weight", (wide, config.query_size), True
            yield f"{at}self_attn.o_proj.bias", (wide,), False
            yield f"{at}mlp.gate_proj.weight", (deep, wide), True
            yield f"{at}mlp.up_proj.weight", (deep, wide), True
            yield f"{at}mlp.down_proj.weight", (wide, deep), True
            yield f"{at}input_layernorm.weight", (wide,), True
            yield f"{at}post_attention_layernorm.weight", (wide,), True


def is_gguf(path: str) -> bool:
    """Say whether a file begins as GGUF files do."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a GGUF file, or a Hugging Face folder.

    Raises
    ------
    OSError
        If there is nothing, or a file of the folder is missing.
    FormatError
        If it is damaged or truncated.
    UnsupportedModelError
        If it is no model of the family that is built here.
    PrunusError
        If a package that reads it is missing.
    """
    text = os.fspath(path)
    if is_gguf(text):
        found = _open_gguf(text)
    elif os.path.isdir(text):
        found = _open_folder(Path(text))
    elif os.path.exists(text):
        raise FormatError(
            f"{text}: expected a GGUF file or a folder with config.json (models that `llm pack` wrote end in "
            ".safetensors)"
        )
    else:
        raise FileNotFoundError(2, "there is no such model", text)
    found.check()
    return found


# Hugging Face ------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _open_folder(folder: Path) -> Checkpoint:
    sizes = _json(folder / "config.json")
    config = Config.from_hugging_face(sizes)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    # Each tensor is read once, and whole: a larger pool would only keep what nobody asks for again.
    tensors, _ = open_tensors(str(index if index.exists() else single), Pager(_BUDGET))
    names = {name: name for name in tensors if not name.endswith(_IDLE)}
    if config.tie_word_embeddings:
        names.pop(OUTPUT, None)
    tokens = folder / "tokenizer.json"
    if not tokens.exists():
        raise FileNotFoundError(2, "the model has no tokenizer.json", str(tokens))
    told, made = (
        _json(path) if (path := folder / name).exists() else {}
        for name in ("tokenizer_config.json", "generation_config.json")
    )
    try:
        template = told.get("chat_template") or ""
        if isinstance(template, list):  # several under names
            template = next((one["template"] for one in template if one.get("name") == "default"), "")
        beside = folder / "chat_template.jinja"
        if beside.exists():
            template = beside.read_text(encoding="utf-8")
        text = tokens.read_text(encoding="utf-8")
        bos, eos = (_content(told.get(name)) for name in ("bos_token", "eos_token"))
        stops = _stops(folder / "generation_config.json", made) or _stops(folder / "config.json", sizes)
        if not stops and eos:
            final = Tokenizer(text).token(eos)
            stops = () if final is None else (final,)
        speech = Speech(text, str(template), bos, eos, stops)
    except PrunusError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: the model's tokenizer is damaged: {error!r}") from error
    return Checkpoint(str(folder), config, speech, tensors, names)


def _stops(path: Path, told: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end a text, as a file says; none where it does not say."""
    found = told.get("eos_token_id")
    every = found if isinstance(found, list) else [] if found is None else [found]
    for one in every:
        if type(one) is not int or one < 0:
            raise FormatError(
                f"{path}: expected a token's number, or a list of them, as eos_token_id, got {found!r}"
            )
    return tuple(every)


def _content(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


# GGUF --------------------------------------------------------------------------------------------------


def _open_gguf(path: str) -> Checkpoint:
    tensors, _ = open_tensors(path)  # says it where the package is missing, or the file damaged
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: one.contents() for name, one in reader.fields.items()}
    except OSError:
        raise
    except Exception as error:  # of any kind where a file is damaged
        raise FormatError(f"{path}: expected a GGUF file: {error}") from error
    names = {}
    for name in tensors:
        if name not in _IDLE:
            names[_hugging_face_name(name)] = name
    factors = tensors["rope_freqs.weight"][...] if "rope_freqs.weight" in tensors else None
    if EMBEDDINGS not in names:
        raise FormatError(f"{path}: the model has no tensor token_embd.weight")
    tied = OUTPUT not in names
    config = Config.from_gguf(fields, tensors[names[EMBEDDINGS]].shape[0], tied=tied, factors=factors)
    orders: dict[str, Callable[[Array], Array]] = {}
    if config.model_type != "qwen2":  # llama.cpp keeps rotated pairs side by side in these
        for letter, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            ends = tuple(f".self_attn.{letter}_proj.{part}" for part in ("weight", "bias"))
            orders |= {name: _halves(heads) for name in names if name.endswith(ends)}
    try:
        tokenizer = tokenizer_from_gguf(fields)
        pieces = fields.get("tokenizer.ggml.tokens", [])
        bos, eos = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
        finals = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        speech = Speech(
            tokenizer,
            str(fields.get("tokenizer.chat_template", "")),
            "" if bos is None else str(pieces[int(bos)]),
            "" if eos is None else str(pieces[int(eos)]),
            tuple(dict.fromkeys(int(end) for end in finals if end is not None)),
        )
    except PrunusError:
        raise
    except Exception as error:  # the package tokenizers raises plain ones
        raise FormatError(f"{path}: the tokenizer in the file is damaged: {error!r}") from error
    return Checkpoint(path, config, speech, tensors, names, orders)


def _hugging_face_name(name: str) -> str:
    if name in _GGUF:
        return _GGUF[name]
    head, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    if head == "blk" and part in _GGUF_LAYER and kind in ("weight", "bias"):
        return f"model.layers.{number}.{_GGUF_LAYER[part]}.{kind}"
    return name  # refused by its name


def _halves(heads: int) -> Callable[[Array], Array]:
    """Return what turns interleaved pairs of rows into Hugging Face's order: first halves, then second."""

    def order(values: Array) -> Array:
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)

    return order
