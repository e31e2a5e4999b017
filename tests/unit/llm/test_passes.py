"""What passes through the layers together, what an interrupt leaves, and what ends a text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunus as pr
from prunus import llm
from prunus.llm import generation
from prunus.llm import model as models
from prunus.llm.chat import render
from prunus.llm.checkpoint import Speech
from prunus.pruning.packed import FFN
from support.llama import small

PROMPTS = ["the sea", "hearts", "no"]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "p.safetensors"
    llm.pack(small(seed=3).folder(tmp_path / "m"), path, dtype="float32")
    return path


@pytest.mark.parametrize("batch", [5, 7, 1000])
def test_prompts_share_each_reading(packed: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    with llm.load(packed) as m:
        alone = [m.generate(prompt, 6).tokens for prompt in PROMPTS]
        passed: list[list[int]] = []
        real = generation.forward

        def counted(weights: Any, positions: Any, parts: Any, *rest: Any, **named: Any) -> Any:
            passed.append([len(part.tokens) for part in parts])
            return real(weights, positions, parts, *rest, **named)

        monkeypatch.setattr(generation, "forward", counted)
        monkeypatch.setattr(models, "BATCH", batch)
        found = m.generate(PROMPTS, 6)
        assert [one.tokens for one in found] == alone
        tokens = found[0].usage.prompt_tokens
        prompts = passed[: -(-tokens // batch)]
        assert sum(map(sum, prompts)) == tokens
        assert all(sum(parts) == batch for parts in prompts[:-1])


def test_an_interrupt_while_angles_are_computed_leaves_a_model_that_works(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with llm.load(packed) as m:
        expected = m.generate("the sea", 5).tokens
    with llm.load(packed) as m:
        with monkeypatch.context() as patch:

            def interrupted(_: Any) -> Any:
                raise KeyboardInterrupt

            patch.setattr(np, "sin", interrupted)
            with pytest.raises(KeyboardInterrupt):
                m.generate("the sea", 5)
        assert m.generate("the sea", 5).tokens == expected


def test_a_stop_token_is_no_text_whatever_the_vocabulary_calls_it(packed: Path) -> None:
    with llm.load(packed) as m:
        free = m.generate("the sea", 6, chat=False)
        stop = free.tokens[3]
        first = free.tokens.index(stop)
        m.speech = replace(m.speech, stops=(stop,))
        found = m.generate("the sea", 6, chat=False)
        assert found.finished
        assert found.tokens == free.tokens[: first + 1]
        assert found.text == m.tokenizer.decode(free.tokens[:first])


def test_templates_are_told_that_there_are_no_tools() -> None:
    template = "{% if tools is not none %}TOOLS{% endif %}{{ messages[0].content }}"
    assert render(Speech("", template), [{"role": "user", "content": "hi"}]) == "hi"


def test_a_text_beyond_the_context_is_refused_before_its_logits_have_room(packed: Path) -> None:
    with llm.load(packed) as m, pytest.raises(ValueError, match="context has room for"):
        m.logits(np.zeros(1 << 28, np.int64))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_layers_apart_are_the_same_and_count_the_same(threads: int) -> None:
    rng = np.random.default_rng(0)
    up, gate = (rng.standard_normal((40, 96)).astype("f4") for _ in range(2))
    down, x = rng.standard_normal((100, 40)).astype("f4"), rng.standard_normal((3, 96)).astype("f4")
    whole = FFN.pack(up, down, gate)
    with pr.num_threads(threads):
        apart = whole.apart()
    for prune in (None, pr.TopK(fraction=0.5)):
        with pr.trace() as one:
            expected = whole(x, "silu", prune)
        with pr.trace() as other:
            np.testing.assert_array_equal(apart(x, "silu", prune), expected)
        assert (one.flops, one.bytes_loaded) == (other.flops, other.bytes_loaded)
    np.testing.assert_array_equal(apart._down, whole._down)
    assert apart.apart().nbytes >= whole._down.nbytes
    empty = FFN.pack(up[:0], down[:, :0], gate[:0]).apart()
    assert empty._down.shape == (0, 100)
    np.testing.assert_array_equal(empty(x, "silu"), np.zeros((3, 100), "f4"))
