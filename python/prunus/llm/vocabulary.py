"""Tokenizers: Hugging Face's ``tokenizers`` does the work, also for vocabularies that come in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from prunus._errors import PrunusError
from prunus.llm.config import UnsupportedModelError

__all__ = ["Tokenizer", "from_gguf"]

_HINT: Final = "pip install 'prunus[demo]' (in a clone: pip install '.[demo]')"
# How text is cut before pairs are merged, by llama.cpp's name for it. The patterns are those of the models'
# own tokenizer.json files.
_GPT2: Final = ("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais")
_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_SPLITS: Final = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_SAME: Final = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_UNKNOWN, _CONTROL, _USER = 2, 3, 4  # types of tokens


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise PrunusError(f"text becomes tokens with the package {error.name}: {_HINT}") from error
    return tokenizers


class Tokenizer:
    """Text to tokens and back.

    Parameters
    ----------
    text : str
        What a ``tokenizer.json`` holds.
    """

    def __init__(self, text: str) -> None:
        try:
            self._it = _tokenizers().Tokenizer.from_str(text)
        except PrunusError:
            raise
        except Exception as error:  # the package raises plain ones
            raise UnsupportedModelError(f"the model's tokenizer cannot be read: {error}") from error

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text; with ``special``, with those that begin every text."""
        found: list[int] = self._it.encode(text, add_special_tokens=special).ids
        return found

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of tokens; with ``special``, control tokens are spelt out."""
        found: str = self._it.decode(list(tokens), skip_special_tokens=not special)
        return found

    def token(self, text: str) -> int | None:
        """Return the number of a token, or None."""
        found: int | None = self._it.token_to_id(text)
        return found

    def __len__(self) -> int:
        size: int = self._it.get_vocab_size()
        return size


def from_gguf(fields: Mapping[str, Any]) -> str:
    """Return the ``tokenizer.json`` of the vocabulary in a GGUF file.

    Raises
    ------
    UnsupportedModelError
        If it is of a kind that is not built here.
    PrunusError
        If the package ``tokenizers`` is missing.
    """
    kind = str(fields.get("tokenizer.ggml.model", "(none)"))
    if kind == "gpt2":
        made = _byte_pairs(fields)
    elif kind == "llama":
        made = _sentence_pieces(fields)
    else:
        raise UnsupportedModelError(f"a tokenizer of the kind {kind!r}; built here are gpt2 and llama")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type", [])
    added = _tokenizers().AddedToken
    for token, sort in zip(tokens, kinds, strict=False):
        if sort in (_UNKNOWN, _CONTROL):
            made.add_special_tokens([added(token, special=True, normalized=False)])
        elif sort == _USER:
            made.add_tokens([added(token, special=False, normalized=False)])
    first = fields.get("tokenizer.ggml.bos_token_id")
    # Files that do not say so mean what llama.cpp takes for granted.
    begins = kind == "llama" or _cut(fields) == "llama-bpe"
    if first is not None and fields.get("tokenizer.ggml.add_bos_token", begins):
        # Under a name of its own: the token's spelling may mean something in a template.
        begin = {"id": "begin", "ids": [int(first)], "tokens": [str(tokens[int(first)])]}
        made.post_processor = _tokenizers().processors.TemplateProcessing(
            single=["begin", "$A"], special_tokens=[begin]
        )
    found: str = made.to_str()
    return found


def _cut(fields: Mapping[str, Any]) -> str:
    """Return how text is cut before pairs are merged."""
    cut = str(fields.get("tokenizer.ggml.pre", "default"))
    return _SAME.get(cut, cut)


def _byte_pairs(fields: Mapping[str, Any]) -> Any:
    """Return a tokenizer that merges pairs of bytes, as GPT-2 does."""
    lib = _tokenizers()
    cut = _cut(fields)
    vocabulary = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    made = lib.Tokenizer(lib.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut == "llama-bpe"))
    split = lib.pre_tokenizers
    space = bool(fields.get("tokenizer.ggml.add_space_prefix", False))
    if cut in _GPT2:
        made.pre_tokenizer = split.ByteLevel(add_prefix_space=space)
    elif cut in _DIGITS:
        made.pre_tokenizer = split.Sequence(
            [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=space)]
        )
    elif cut in _SPLITS:
        pattern = lib.Regex(_SPLITS[cut])
        made.pre_tokenizer = split.Sequence(
            [split.Split(pattern, "isolated"), split.ByteLevel(add_prefix_space=space, use_regex=False)]
        )
        if cut == "qwen2":
            made.normalizer = lib.normalizers.NFC()
    else:
        known = ", ".join(sorted([*_GPT2, *_DIGITS, *_SPLITS, *_SAME]))
        raise UnsupportedModelError(f"text that is cut as {cut!r}; built here are {known}")
    made.decoder = lib.decoders.ByteLevel()
    return made


def _sentence_pieces(fields: Mapping[str, Any]) -> Any:
    """Return a tokenizer of pieces with scores, as SentencePiece's BPE: the best pair is merged first."""
    lib = _tokenizers()
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = []
    for token, score in zip(tokens, scores, strict=True):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                pairs.append((-score, vocabulary[left], vocabulary[right], left, right))
    pairs.sort()
    unknown = tokens[int(fields.get("tokenizer.ggml.unknown_token_id", 0))]
    model = lib.models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in pairs],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    made = lib.Tokenizer(model)
    change = lib.normalizers
    steps = [change.Prepend("▁")] if fields.get("tokenizer.ggml.add_space_prefix", True) else []
    made.normalizer = change.Sequence([*steps, change.Replace(" ", "▁")])
    back = lib.decoders
    strip = [back.Strip(" ", 1, 0)] if steps else []
    made.decoder = back.Sequence([back.Replace("▁", " "), back.ByteFallback(), back.Fuse(), *strip])
    return made
