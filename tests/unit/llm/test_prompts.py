"""What a prompt may be, and what is said of anything else."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus import PrunusError, llm
from support.llama import small

ASK = [{"role": "user", "content": "the sea"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> llm.Model:
    return llm.load(small(seed=3).folder(tmp_path_factory.mktemp("m")), dtype="float32")


def test_tokens_are_continued_as_they_are(model: llm.Model) -> None:
    tokens = model.tokens("the sea").tolist()
    expected = model.generate("the sea", 5, chat=False)
    every: list[Any] = [tokens, tuple(tokens), np.array(tokens), np.array(tokens, np.uint16), deque(tokens)]
    for prompt in every:
        found = model.generate(prompt, 5, chat=False)
        assert (found.tokens, found.prompt_tokens) == (expected.tokens, len(tokens))


def test_lists_of_prompts_are_several(model: llm.Model) -> None:
    said = model.generate("the sea", 5)
    for prompts in ([ASK, ASK], ["the sea", ASK], (ASK, "the sea")):
        assert [one.tokens for one in model.generate(prompts, 5)] == [said.tokens] * 2
    (alone,) = model.generate([ASK], 5)
    assert alone.tokens == said.tokens == model.generate(ASK, 5).tokens
    tokens = model.tokens("the sea")
    raw = model.generate(["the sea", tokens, tokens.tolist()], 5, chat=False)
    assert len(raw) == 3
    assert {tuple(one.tokens) for one in raw} == {tuple(raw[0].tokens)}
    assert len(model.generate(np.array([[1, 2], [3, 4]]), 2, chat=False)) == 2


WRONG: list[tuple[Any, type[Exception], str]] = [
    (b"abc", TypeError, "expected a prompt: .*got bytes"),
    (7, TypeError, "expected a prompt: .*got int"),
    (None, TypeError, "expected a prompt: .*got NoneType"),
    ({"role": "user", "content": "a"}, TypeError, "expected a prompt: .*got dict"),
    ([], ValueError, "expected a prompt: .*got nothing"),
    ([[]], ValueError, "prompt 0: expected a prompt: .*got nothing"),
    ([b"abc"], TypeError, "prompt 0: expected a prompt: .*got a list of bytes"),
    (["a", 3], TypeError, "prompt 1: expected a prompt: .*got int"),
    (["a", None], TypeError, "prompt 1: expected a prompt: .*got NoneType"),
    ([1.5, 2.5], TypeError, "prompt 0: expected a prompt: .*got a list of float"),
    ([True, False], TypeError, "prompt 0: expected a prompt: .*got a list of bool"),
    ([1, "a"], TypeError, "prompt 0: expected a prompt: .*got a list of int, str"),
    ([*ASK, "a"], TypeError, "prompt 0: expected a prompt: .*got a list of dict, str"),
    ([[["a"]]], TypeError, "prompt 0: expected a prompt: .*got a list of list"),
    (np.float32(1), TypeError, "expected a prompt: .*got float32"),
    (np.array(1), TypeError, "expected a prompt: .*got ndarray"),
]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("prompt", "error", "message"), WRONG, ids=[repr(one[0]) for one in WRONG])
def test_anything_else_is_refused(
    model: llm.Model, prompt: Any, error: type[Exception], message: str, chat: bool
) -> None:
    with pytest.raises(error, match=message):
        model.generate(prompt, 2, chat=chat)


def test_messages_have_a_role_and_a_content(model: llm.Model) -> None:
    with pytest.raises(ValueError, match="prompt 0: message 1 has no 'content'"):
        model.generate([*ASK, {"role": "user"}], 2)
    with pytest.raises(ValueError, match="prompt 1: message 0 has no 'role'"):
        model.generate([ASK, [{"content": "a"}]], 2)
    with pytest.raises(TypeError, match="'content' of message 0 must be a str, got int"):
        model.generate([{"role": "user", "content": 3}], 2)  # type: ignore[dict-item]


def test_what_goes_with_a_template_and_what_without(model: llm.Model, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"prompt 0 is a list of tokens.*pass chat=False"):
        model.generate([1, 2, 3], 2)
    with pytest.raises(TypeError, match=r"prompt 0 is a conversation.*pass chat=True"):
        model.generate(ASK, 2, chat=False)
    with pytest.raises(ValueError, match="beyond 64 bits"):
        model.generate([1, 2**70], 2, chat=False)
    with pytest.raises(ValueError, match="tokens must be from 0 to 299, got -1"):
        model.generate([1, -1], 2, chat=False)
    plain = small(seed=3).folder(tmp_path / "plain")
    (plain / "tokenizer_config.json").unlink()
    with llm.load(plain, dtype="float32") as m:
        assert m.generate("the sea", 5).tokens == model.generate("the sea", 5, chat=False).tokens
        with pytest.raises(PrunusError, match="no chat template"):
            m.generate(ASK, 2)


def test_streams_take_lists_of_prompts(model: llm.Model) -> None:
    for prompts in ("abc", b"abc", 3):
        with pytest.raises(TypeError, match=f"list of prompts, got {type(prompts).__name__}"):
            model.stream(prompts, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"prompt 0: expected a prompt: .*got dict"):
        model.stream(ASK, 2)
