"""Vocabularies out of GGUF files: how text is cut, what begins it, and how it comes back piece by piece."""

import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prunus import FormatError, PrunusError, llm
from prunus.llm import UnsupportedModelError
from prunus.llm.generation import Completion, Usage, _Text, _tokens
from prunus.llm.vocabulary import Tokenizer, from_gguf
from support.llama import SPECIAL, TEMPLATE, small

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
TEXTS = [
    "the sea",
    " two  spaces and\ttabs\n\n\nlines \n",
    "1234567 and 3.14",
    "I'll, they'RE; don't!",
    "naïve café — “quotes”",
    "日本語と한국어",
    "👩‍👩‍👧 🇳🇿 e\u0301",
    "x = [1, 2];\r\n\tif (x) {\r\n}",
    "½ ٣ Ⅷ",
    "\u200b\ufeff\u00a0",
    "ﬁ Å",
    "   ",
]


def letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def pairs(**more: Any) -> dict[str, Any]:
    """Fields of a vocabulary of bytes, some pairs of them, a control and a user's token."""
    made = ["th", "he", "12", "23", "Ġt", "Ġth", "the", "ĊĊ", "ĠĠ", "'l"]
    merges = ["Ġ t", "t h", "h e", "1 2", "2 3", "Ġt h", "th e", "Ċ Ċ", "Ġ Ġ", "' l"]
    tokens = [*letters(), *made, "<|begin|>", "<tool>"]
    kinds = [NORMAL] * (len(tokens) - 2) + [CONTROL, USER]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    } | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def spelt(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return tokens as the vocabulary spells them."""
    return [tokenizer._it.id_to_token(token) for token in tokenizer.encode(text)]


# Pairs of bytes ----------------------------------------------------------------------------------------

ALL = ["default", "gpt-2", "refact", "smollm", "llama-bpe", "llama3", "llama-v3", "qwen2", "deepseek-r1-qwen"]


@pytest.mark.parametrize("cut", ALL)
def test_text_comes_back(cut: str) -> None:
    tokenizer = Tokenizer(from_gguf(pairs(pre=cut)))
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        qwen = cut in ("qwen2", "deepseek-r1-qwen")  # which takes text in normal form
        assert tokenizer.decode(tokens) == (unicodedata.normalize("NFC", text) if qwen else text)
    assert len(tokenizer) == 268


@pytest.mark.parametrize(
    ("cut", "text", "expected"),
    [
        # GPT-2 merges digits; those made for arithmetic keep each alone; Llama 3 takes three at a time.
        ("gpt-2", "1234", ["12", "3", "4"]),
        ("default", "1234", ["12", "3", "4"]),
        ("smollm", "1234", ["1", "2", "3", "4"]),
        ("refact", "1234", ["1", "2", "3", "4"]),
        ("llama-bpe", "1123", ["1", "12", "3"]),
        ("qwen2", "1234", ["1", "2", "3", "4"]),
        # Several empty lines are one piece where the pattern has them together.
        ("gpt-2", "a\n\nb", ["a", "Ċ", "Ċ", "b"]),
        ("llama-bpe", "a\n\nb", ["a", "ĊĊ", "b"]),
        ("qwen2", "a\n\nb", ["a", "ĊĊ", "b"]),
        # A word takes one mark before it with it, or only a space.
        ("gpt-2", " the", ["Ġt", "he"]),
        ("llama-bpe", "'lx", ["'l", "x"]),
        ("gpt-2", "'lx", ["'", "l", "x"]),
        # The last of several spaces belongs to the word.
        ("gpt-2", "a   the", ["a", "ĠĠ", "Ġt", "he"]),
        ("qwen2", "a   the", ["a", "ĠĠ", "Ġt", "he"]),
    ],
)
def test_where_text_is_cut(cut: str, text: str, expected: list[str]) -> None:
    assert spelt(Tokenizer(from_gguf(pairs(pre=cut))), text) == expected


def test_whole_words_of_the_vocabulary_need_no_merges_in_llama_3() -> None:
    fields = pairs(pre="llama-bpe")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "sea"]
    assert spelt(Tokenizer(from_gguf(fields)), "sea") == ["sea"]
    fields["tokenizer.ggml.pre"] = "gpt-2"
    assert spelt(Tokenizer(from_gguf(fields)), "sea") == ["s", "e", "a"]


def test_control_and_users_tokens() -> None:
    tokenizer = Tokenizer(from_gguf(pairs(pre="smollm")))
    begin, tool = tokenizer.token("<|begin|>"), tokenizer.token("<tool>")
    assert (begin, tool) == (266, 267)
    tokens = tokenizer.encode("a<|begin|>b<tool>c")
    assert [token for token in tokens if token >= 266] == [266, 267]
    assert tokenizer.decode(tokens) == "ab<tool>c"
    assert tokenizer.decode(tokens, special=True) == "a<|begin|>b<tool>c"
    assert tokenizer.token("nothing") is None


def test_what_begins_every_text() -> None:
    def first(**more: Any) -> bool:
        tokenizer = Tokenizer(from_gguf(pairs(bos_token_id=266, **more)))
        assert 266 not in tokenizer.encode("a", special=False)
        return tokenizer.encode("a")[0] == 266

    assert not first(pre="smollm")
    assert first(pre="smollm", add_bos_token=True)
    # Files of Llama 3 leave it unsaid.
    for cut in ("llama-bpe", "llama3", "llama-v3"):
        assert first(pre=cut)
        assert not first(pre=cut, add_bos_token=False)
    assert Tokenizer(from_gguf(pairs(pre="llama-bpe"))).encode("a") != [266]  # there is none


def test_a_first_token_of_any_spelling() -> None:
    fields = pairs(bos_token_id=266, add_bos_token=True)
    fields["tokenizer.ggml.tokens"][266] = "<: begin▁of sentence :1>"
    assert Tokenizer(from_gguf(fields)).encode("a")[0] == 266


def test_what_is_not_built_is_refused_by_name() -> None:
    for kind in ("bert", "rwkv", "t5"):
        with pytest.raises(UnsupportedModelError, match=f"kind '{kind}'; built here are gpt2 and llama"):
            from_gguf(pairs() | {"tokenizer.ggml.model": kind})
    with pytest.raises(UnsupportedModelError, match=r"kind '\(none\)'"):
        from_gguf({})
    with pytest.raises(UnsupportedModelError, match=r"cut as 'tekken'; built here are .*smollm"):
        from_gguf(pairs(pre="tekken"))
    for text in ("", "{}", "[]", '{"version": "1.0"}'):
        with pytest.raises(UnsupportedModelError, match="cannot be read"):
            Tokenizer(text)


def test_a_damaged_vocabulary_in_a_file(tmp_path: Path) -> None:
    import gguf

    def write(name: str, *calls: Any) -> Path:
        class Other(gguf.GGUFWriter):
            def add_token_merges(self, merges: Any) -> None:
                super().add_token_merges([*merges, "nothing like-this"])

        writer, gguf.GGUFWriter = gguf.GGUFWriter, Other
        try:
            return small().gguf(tmp_path / name)
        finally:
            gguf.GGUFWriter = writer

    with pytest.raises(FormatError, match="tokenizer in the file is damaged"):
        llm.load(write("m.gguf"))
    with pytest.raises(FormatError, match="tokenizer in the file is damaged"):
        llm.load(small().gguf(tmp_path / "n.gguf", add_bos_token_id=10**6))


# Pieces with scores ------------------------------------------------------------------------------------


def pieces(**more: Any) -> dict[str, Any]:
    """Fields of a vocabulary as SentencePiece makes them: bytes, letters and longer pieces with scores."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    longer = ["▁t", "he", "▁the", "er", "in", "▁a", "▁▁", "on", "▁on"]
    single = [*"▁abcdefghijklmnopqrstuvwxyz.,'", "é"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *longer, *single]
    scores = [0.0] * 259 + [-float(i) for i in range(len(longer))] + [-100.0 - i for i in range(len(single))]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(longer) + len(single))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{name}": value for name, value in more.items()}


def best_first(text: str, fields: dict[str, Any]) -> list[str]:
    """Merge the neighbours whose piece has the best score, the leftmost of equals, until none is a piece."""
    scores = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True))
    parts = list(text)
    while True:
        found = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [
        p for part in parts for p in ([part] if part in scores else [f"<0x{b:02X}>" for b in part.encode()])
    ]


def test_the_best_pair_is_merged_first() -> None:
    fields = pieces()
    tokenizer = Tokenizer(from_gguf(fields))
    draw = random.Random(0)
    texts = ["the on then in", "other", "inner  on", "", "x", "日 né 👋"]
    texts += ["".join(draw.choices("there on   a é日", k=draw.randrange(1, 30))) for _ in range(300)]
    for text in texts:
        expected = best_first("▁" + text.replace(" ", "▁"), fields) if text else []
        assert spelt(tokenizer, text) == ["<s>", *expected]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_space_before_the_text_may_be_left_out() -> None:
    fields = pieces(add_space_prefix=False, add_bos_token=False)
    tokenizer = Tokenizer(from_gguf(fields))
    assert spelt(tokenizer, "the") == ["t", "he"]
    assert spelt(tokenizer, " the") == ["▁the"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_begins_and_ends_is_not_shown() -> None:
    tokenizer = Tokenizer(from_gguf(pieces()))
    tokens = [*tokenizer.encode("the"), 2]
    assert tokens[0] == 1
    assert tokenizer.decode(tokens) == "the"
    assert tokenizer.decode([0, *tokens]) == "the"
    assert tokenizer.encode("the</s>")[-1] == 2


# As it comes -------------------------------------------------------------------------------------------


class Spoken:
    """What a text that grows needs of a model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer


def shown(tokenizer: Tokenizer, tokens: list[int]) -> tuple[list[str], str]:
    """Return the pieces in which tokens are shown, and the text at the end."""
    completion = Completion(Usage(), 1)
    text = _Text(Spoken(tokenizer), completion)  # type: ignore[arg-type]
    found = []
    for at, token in enumerate(tokens):
        completion.tokens.append(token)
        found.append(text.piece(at == len(tokens) - 1))
    return found, completion.text


@pytest.mark.parametrize("fields", [pairs(pre="smollm"), pairs(pre="llama-bpe"), pieces(add_bos_token=False)])
def test_pieces_end_with_whole_characters_and_add_up(fields: dict[str, Any]) -> None:
    tokenizer = Tokenizer(from_gguf(fields))
    for text in [*TEXTS, "".join(TEXTS)]:
        tokens = tokenizer.encode(text)
        parts, whole = shown(tokenizer, tokens)
        assert "".join(parts) == whole == tokenizer.decode(tokens) == text
        assert not any("\ufffd" in part for part in parts)
        assert len(parts) == len(tokens)


@pytest.mark.parametrize("fields", [pairs(pre="smollm"), pairs(pre="llama-bpe"), pieces(add_bos_token=False)])
def test_long_texts_add_up_though_few_tokens_are_decoded_again(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(from_gguf(fields))
    decode, most = tokenizer.decode, 0

    def counted(tokens: list[int]) -> str:
        nonlocal most
        most = max(most, len(tokens))
        return decode(tokens)

    rng = random.Random(4)
    marked = tokenizer.token("<tool>") or tokenizer.encode("a")[-1]
    for number in range(12):
        text = "".join(rng.choices(["the sea ", "日本 ", "  ", " ", "naïve", "👩‍👩‍👧", "\n", "12"], k=200))
        tokens = tokenizer.encode(text)
        if number % 2:  # also what nobody would write, such as tokens of another kind amid words
            for _ in range(20):
                tokens.insert(rng.randrange(len(tokens)), marked)
        expected = decode(tokens)
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "decode", counted)
            parts, whole = shown(tokenizer, tokens)
        if "\ufffd" not in expected:
            assert "".join(parts) == whole == expected
        assert most < 128 < len(tokens)


@pytest.mark.parametrize("fields", [pairs(pre="smollm"), pieces(add_bos_token=False)])
@pytest.mark.parametrize("space", [" ", "\n", "\t"])
def test_long_runs_of_space_are_all_shown(fields: dict[str, Any], space: str) -> None:
    tokenizer = Tokenizer(from_gguf(fields))
    text = f"a{space * 150}the{space * 150} sea"
    parts, whole = shown(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == whole == text


@pytest.mark.parametrize("fields", [pairs(pre="smollm"), pieces(add_bos_token=False)])
def test_a_character_that_is_cut_off_shows_at_the_end_only(fields: dict[str, Any]) -> None:
    tokenizer = Tokenizer(from_gguf(fields))
    tokens = tokenizer.encode("ab日本")[:-1]
    parts, whole = shown(tokenizer, tokens)
    assert "".join(parts) == whole
    assert not any("\ufffd" in part for part in parts[:-1])
    assert parts[-1].startswith("\ufffd")
    assert whole.startswith("ab日")


def test_pieces_add_up_whatever_bytes_come() -> None:
    draw = random.Random(1)
    for fields in (pairs(pre="smollm"), pieces(add_bos_token=False)):
        tokenizer = Tokenizer(from_gguf(fields))
        good = [tokenizer.encode(text) for text in ("a日b", "é", "👋", " the")]
        for _ in range(300):
            tokens = [t for _ in range(4) for t in draw.choice(good)]
            for _ in range(draw.randrange(3)):
                tokens.insert(draw.randrange(len(tokens)), draw.randrange(len(tokenizer)))
            parts, whole = shown(tokenizer, tokens)
            assert "".join(parts) == whole


# Conversations -----------------------------------------------------------------------------------------


def test_a_template_says_itself_what_a_text_begins_with(tmp_path: Path) -> None:
    begin = "{{ bos_token }}"
    path = small().gguf(tmp_path / "m.gguf", add_bos_token_id=257, add_add_bos_token=True)
    with llm.load(path) as m:
        assert m.tokens("a")[0] == 257
        object.__setattr__(m.speech, "chat_template", begin + TEMPLATE)
        made = _tokens(m, "a", True)
        assert made.tolist().count(257) == 2  # <|user|>: once before all, once in the template
        assert made[:3].tolist() == [257, 257, m.tokenizer.token("a")]
        assert _tokens(m, "a", False).tolist() == [257, m.tokenizer.token("a")]
        assert SPECIAL[1] == m.speech.bos


def test_no_prompts(tmp_path: Path) -> None:
    with llm.load(small().folder(tmp_path / "m")) as m:
        with pytest.raises(ValueError, match="at least one prompt"):
            m.generate([])
        with pytest.raises(ValueError, match="room for 96 tokens, and 97 are wanted"):
            m.logits(list(range(97)))


def test_a_text_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(PrunusError, match=r"package tokenizers: pip install 'prunus\[demo\]'"):
        Tokenizer("{}")
