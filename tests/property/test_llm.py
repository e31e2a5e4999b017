"""Language models: where weights lie, and who shares a reading of them, changes no bit of what is said."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus import llm
from support.llama import small

Prompts = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), min_size=1, max_size=4)
KINDS = {
    "bfloat16, up": ("bfloat16", "up"),
    "float32, gate": ("float32", "gate"),
    "bfloat16, predictor": ("bfloat16", "predictor"),
}


@pytest.fixture(scope="module", params=KINDS)
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[llm.Model]]:
    """Return a model in memory, and the same one on disk with the least budget and with a larger one."""
    dtype, decide = KINDS[request.param]
    folder: Path = tmp_path_factory.mktemp("m")
    path = folder / "p.safetensors"
    made = small(seed=9, num_hidden_layers=3, intermediate_size=80, vocab_size=300, biases=decide == "gate")
    llm.pack(made.folder(folder / "m"), path, dtype=dtype, decide=decide)
    with llm.load(path) as memory, llm.load(path, 131072) as least, llm.load(path, "2 MiB") as more:
        yield [memory, least, more]


def keep_of(models: list[llm.Model], keep: float) -> float | None:
    """Only a calibration has predictors: without one such a model is dense."""
    return None if models[0].weights.decide == "predictor" or keep == 1 else keep


@settings(max_examples=25)
@given(
    prompts=Prompts, tokens=st.integers(1, 8), keep=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 9)
)
def test_on_disk_is_in_memory_token_by_token(
    models: list[llm.Model], prompts: list[list[int]], tokens: int, keep: float, seed: int
) -> None:
    share, how = keep_of(models, keep), {"temperature": 1.5 if seed % 2 else 0.0, "seed": seed}
    texts = [models[0].tokenizer.decode(prompt, special=True) or "x" for prompt in prompts]
    found = [
        [(one.tokens, one.text) for one in m.generate(texts, tokens, chat=False, keep=share, **how)]
        for m in models
    ]
    assert found[1] == found[0]
    assert found[2] == found[0]
    for prompt in prompts:
        memory, *disks = (m.logits(prompt, keep=share) for m in models)
        for disk in disks:
            np.testing.assert_array_equal(disk, memory)


@settings(max_examples=25)
@given(
    prompts=Prompts, keep=st.sampled_from([0.1, 0.5, 1.0]), steps=st.integers(1, 4), which=st.integers(0, 2)
)
def test_ragged_batches_are_texts_alone(
    models: list[llm.Model], prompts: list[list[int]], keep: float, steps: int, which: int
) -> None:
    from prunus.llm.cache import Cache
    from prunus.llm.forward import Part, forward
    from prunus.llm.pruning import Tally, policies

    m = models[which]
    rules = policies(m.weights, None, keep_of(models, keep), Tally())

    def caches() -> list[Cache]:
        return [Cache(m.weights.config, 1) for _ in prompts]

    both, alone = caches(), caches()
    for step in range(steps):  # each takes its own stride, and some pause
        pieces = [
            prompt[step::steps] if step % 2 == 0 else prompt[: (i + step) % 3]
            for i, prompt in enumerate(prompts)
        ]
        on = [i for i, piece in enumerate(pieces) if piece]
        if not on:
            continue
        found = forward(m.weights, m.positions, [Part(both[i], np.array(pieces[i])) for i in on], rules)
        single = [forward(m.weights, m.positions, [Part(alone[i], np.array(pieces[i]))], rules) for i in on]
        np.testing.assert_array_equal(found, np.concatenate(single))
    assert [cache.length for cache in both] == [cache.length for cache in alone]
