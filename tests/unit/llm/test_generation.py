"""Generating: greedy and drawn, one prompt or several, in memory and on disk; chat; sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunus as pr
from prunus import PrunusError, llm
from prunus.llm.sampling import Sampler
from support.llama import Small, small

PROMPTS = ["the sea", "hearts", "no"]


@pytest.fixture
def model() -> Small:
    return small(seed=3, num_hidden_layers=3)


@pytest.fixture
def packed(model: Small, tmp_path: Path) -> Path:
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path, dtype="float32")
    return path


def test_greedy_text_is_the_likeliest_token_each_time(model: Small, packed: Path) -> None:
    with llm.load(packed) as m:
        found = m.generate("the sea", 12, chat=False)
        tokens = m.tokens("the sea").tolist()
        assert found.prompt_tokens == len(tokens)
        for token in found.tokens:
            assert token == int(np.argmax(model.logits(tokens)[-1]))
            tokens.append(token)
        assert str(found) == found.text == m.tokenizer.decode(found.tokens)
        assert found.finished == (found.tokens[-1] == 256)
        assert len(found.tokens) == 12 or found.finished


@pytest.mark.parametrize("prune", [{}, {"keep": 0.5}])
def test_on_disk_several_prompts_say_what_each_says_in_memory(packed: Path, prune: dict[str, float]) -> None:
    with llm.load(packed) as memory, llm.load(packed, "1 MiB") as disk:
        alone = [memory.generate(prompt, 10, **prune) for prompt in PROMPTS]
        together = disk.generate(PROMPTS, 10, **prune)
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        assert [one.text for one in together] == [one.text for one in alone]
        usage = together[0].usage
        assert usage.tokens == sum(len(one.tokens) for one in alone)
        assert usage.live_fraction == pytest.approx(prune.get("keep", 1.0))


def test_pieces_add_up_to_the_text(packed: Path) -> None:
    with llm.load(packed) as m:
        made = m.stream(PROMPTS, 15)
        pieces = ["", "", ""]
        for number, piece in made:
            pieces[number] += piece
        assert pieces == [one.text for one in made.completions]
        assert pieces == [m.generate(prompt, 15).text for prompt in PROMPTS]


def test_drawing_depends_on_the_seed_alone(packed: Path) -> None:
    with llm.load(packed) as m:
        first = m.generate(PROMPTS, 12, temperature=2.0, seed=7)
        again = m.generate(PROMPTS, 12, temperature=2.0, seed=7)
        other = m.generate(PROMPTS, 12, temperature=2.0, seed=8)
    assert [one.tokens for one in first] == [one.tokens for one in again]
    assert [one.tokens for one in first] != [one.tokens for one in other]


def test_a_conversation_goes_through_the_template(packed: Path) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "the sea"},
    ]
    with llm.load(packed) as m:
        raw = "<|user|>hi<|assistant|>yes<|user|>the sea<|assistant|>"
        assert m.generate(messages, 6).tokens == m.generate(raw, 6, chat=False).tokens
        assert m.generate("hi", 6).tokens == m.generate("<|user|>hi<|assistant|>", 6, chat=False).tokens


def test_templates_run_in_a_sandbox_and_may_refuse() -> None:
    from prunus.llm.chat import render
    from prunus.llm.checkpoint import Speech

    ask = [{"role": "user", "content": "x"}]
    with pytest.raises(PrunusError, match="refuses the conversation: no users"):
        render(Speech("", "{{ raise_exception('no users') }}"), ask)
    with pytest.raises(PrunusError, match="refuses"):
        render(Speech("", "{{ messages.__class__.__mro__ }}"), ask)
    with pytest.raises(PrunusError, match="no chat template"):
        render(Speech("", ""), ask)
    for template, error in (
        ("{{ 1/0 }}", "ZeroDivisionError"),
        ("{{ 'a'+1 }}", "TypeError"),
        ("{{ range(10**9) }}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages[0].content|int('x', base='y') + 1 }}", "TypeError"),
    ):
        with pytest.raises(PrunusError, match=f"chat template fails: {error}: "):
            render(Speech("", template), ask)


def test_bad_requests(packed: Path) -> None:
    with llm.load(packed) as m:
        with pytest.raises(ValueError, match="context has room for 96"):
            m.generate("a" * 80, 50)
        with pytest.raises(ValueError, match="nothing"):
            m.generate("", chat=False)
        with pytest.raises(ValueError, match="at least one prompt"):
            m.stream([])
        with pytest.raises((TypeError, ValueError), match="tokens"):
            m.generate("a", 0)
        with pytest.raises(ValueError, match="temperature"):
            m.generate("a", temperature=-1.0)
        with pytest.raises(ValueError, match="top_p"):
            m.generate("a", top_p=0.0)
        with pytest.raises(ValueError, match="keep"):
            m.generate("a", keep=1.5)
        with pytest.raises(ValueError, match="contradicts"):
            m.generate("a", keep=0.5, prune="exact")
        with pytest.raises(TypeError, match="list of tokens"):
            m.logits([0.5])


def test_a_budget_that_is_too_small_names_the_least(packed: Path) -> None:
    for budget in ("4 KiB", "32 KiB", "64 KiB", 131071):
        with pytest.raises(ValueError, match="at least 131072 bytes"):
            llm.load(packed, budget)
    with pytest.raises(ValueError, match="at least 131072 bytes"):
        llm.load(packed, pager=pr.paged.Pager("64 KiB"))
    with llm.load(packed, 131072) as least, llm.load(packed) as memory:
        np.testing.assert_array_equal(least.logits([1, 2]), memory.logits([1, 2]))


def test_perplexity_is_that_of_the_formulas(model: Small, packed: Path) -> None:
    tokens = [5, 17, 256, 99, 40, 41, 42, 7]
    rows = model.logits(tokens)[:-1]
    rows -= rows.max(1, keepdims=True)
    losses = np.log(np.exp(rows).sum(1)) - rows[np.arange(7), tokens[1:]]
    with llm.load(packed, "1 MiB") as m:
        assert m.perplexity(tokens) == pytest.approx(np.exp(losses.mean()), rel=1e-4)
        with pytest.raises(ValueError, match="at least two"):
            m.perplexity([1])


# Sampling ----------------------------------------------------------------------------------------------


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler().pick(np.array([0.0, 3.0, 3.0, 1.0], np.float32)) == 1


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(1.0, seed=0)
    counts = np.bincount([sampler.pick(logits) for _ in range(20000)], minlength=4) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    cold = Sampler(0.5, seed=0)
    counts = np.bincount([cold.pick(logits) for _ in range(20000)], minlength=4) / 20000
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(counts, squares / squares.sum(), atol=0.015)


def test_top_p_keeps_the_likeliest_that_reach_it() -> None:
    logits = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
    sampler = Sampler(1.0, top_p=0.7, seed=1)
    assert {sampler.pick(logits) for _ in range(2000)} == {1, 3}
    assert {Sampler(1.0, top_p=0.4, seed=i).pick(logits) for i in range(50)} == {1}


def test_the_least_temperature_is_greedy_without_a_warning() -> None:
    for temperature in (1e-308, 5e-324):
        assert Sampler(temperature, seed=0).pick(np.array([0.0, 3.0, 2.9], np.float32)) == 1


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", ["x", None, 1j, True])
def test_what_is_no_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number, got {type(value).__name__}"):
        Sampler(**{name: value})


def test_nan_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="NaN"):
        Sampler().pick(np.array([0.0, np.nan], np.float32))


def test_the_table_tells_what_it_took(packed: Path) -> None:
    from prunus.llm.report import Memory, usage_table

    memory = Memory()
    with llm.load(packed, pager=pr.paged.Pager("1 MiB")) as m:
        found = m.generate("the sea", 4)
        text = usage_table(m, found.usage, memory)
    for word in ("tokens/s", "read from disk", "drive in use", "found in memory", "live hidden units"):
        assert word in text


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prompt", ["", ["the sea", ""]])
def test_an_empty_prompt_is_refused(packed: Path, prompt: Any, chat: bool) -> None:
    with llm.load(packed) as m, pytest.raises(ValueError, match=r"prompt [01]: .*got nothing"):
        m.generate(prompt, 3, chat=chat)


def test_a_conversation_without_a_word_is_refused(packed: Path) -> None:
    silent = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    with llm.load(packed) as m, pytest.raises(ValueError, match="empty texts only"):
        m.generate(silent, 3)


def test_seeds(packed: Path) -> None:
    with llm.load(packed) as m:
        with pytest.raises(ValueError, match="seed must be at least 0, got -3"):
            m.generate("no", 3, temperature=1.0, seed=-3)
        for wrong in (1.5, "1", True):
            with pytest.raises(TypeError, match="seed must be an integer"):
                m.generate("no", 3, temperature=1.0, seed=wrong)  # type: ignore[arg-type]
        same = [m.generate("no", 5, temperature=2.0, seed=seed).tokens for seed in (7, np.int64(7))]
        assert same[0] == same[1]
    with pytest.raises(ValueError, match="seed must be at least 0"):
        Sampler(1.0, seed=-1)


def test_tokens_are_integers(packed: Path) -> None:
    with llm.load(packed) as m:
        with pytest.raises(TypeError, match="tokens, which are integers, got float64"):
            m.logits([1.5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="got bool"):
            m.logits(np.array([True]))


def test_what_is_shown_of_models_and_calibrations(packed: Path) -> None:
    with llm.load(packed, "1 MiB") as m:
        assert "on disk, budget 1.0 MiB" in repr(m)
        found = m.calibrate("the sea is not as near as it was", rank=2)
    assert repr(m) == "<prunus.llm.Model p.safetensors: closed>"
    assert repr(found).startswith("<prunus.llm.Calibration of 3 layers of ")
    assert "predictors of rank 2" in repr(found)
    with llm.load(packed) as memory:
        assert "no predictors" in repr(memory.calibrate("the sea is not as near"))
    assert "in memory" in repr(memory)  # closing took nothing from it


def test_the_name_of_the_packaged_model(
    model: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.llm import packaged

    path = model.gguf(tmp_path / "small.gguf")
    monkeypatch.setattr(packaged, "find_packaged", lambda: path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with llm.load(path) as direct, llm.load("smollm2") as named:
        assert named.path == str(path)
        assert named.generate("no", 4).tokens == direct.generate("no", 4).tokens
    kept = llm.packed("smollm2")
    assert kept == llm.packed(path)
    assert kept.parent == tmp_path / "cache"
    llm.pack("smollm2", tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").read_bytes() == kept.read_bytes()
    for other in ("./smollm2", Path("smollm2")):  # a path, where nothing is
        with pytest.raises(FileNotFoundError, match="no such model"):
            llm.load(other)
