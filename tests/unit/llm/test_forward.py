"""Models against the formulas in plain NumPy, from every format, in memory and on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus import llm
from support.llama import Small, small

TOKENS = [5, 17, 256, 99, 40, 41, 42, 7, 7, 200, 13]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "own output": {"tie_word_embeddings": False},
    "head_dim": {"head_dim": 12},
    "mistral": {"model_type": "mistral", "tie_word_embeddings": False, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "biases": True, "rms_norm_eps": 1e-6},
    "llama with biases": {"biases": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama3": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
}


def close(found: Any, expected: Any) -> None:
    """Logits of float32 arithmetic against float64."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Small:
    return small(**KINDS[request.param])


def test_a_folder_gives_the_logits_of_the_formulas(model: Small, tmp_path: Path) -> None:
    with llm.load(model.folder(tmp_path / "m"), dtype="float32") as m:
        close(m.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("decide", ["up", "gate", "predictor"])
@pytest.mark.parametrize("budget", [None, "1 MiB"])
def test_a_packed_model_gives_the_logits_of_the_formulas(
    model: Small, tmp_path: Path, decide: str, budget: str | None
) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path, dtype="float32", decide=decide)
    with llm.load(path, budget) as m:
        close(m.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("kind", ["tied", "own output", "mistral", "qwen2"])
def test_a_gguf_file_gives_the_logits_of_the_formulas(kind: str, tmp_path: Path) -> None:
    model = small(**KINDS[kind])
    with llm.load(model.gguf(tmp_path / "m.gguf"), dtype="float32") as m:
        close(m.logits(TOKENS), model.logits(TOKENS))


def test_a_gguf_file_with_tabulated_wavelengths_is_llama3(tmp_path: Path) -> None:
    scaling = LLAMA3 | {"original_max_position_embeddings": 8192}
    model = small(rope_scaling=scaling)
    plain = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    from support.llama import inverse_frequencies

    factors = (plain / inverse_frequencies(model.config, 8)).astype(np.float32)
    model.tensors["rope_freqs"] = factors  # a tensor that Hugging Face has no name for
    import support.llama as made

    name = made.gguf_name
    try:
        made.gguf_name = lambda one: "rope_freqs.weight" if one == "rope_freqs" else name(one)
        path = model.gguf(tmp_path / "m.gguf")
    finally:
        made.gguf_name = name
    del model.tensors["rope_freqs"]
    with llm.load(path, dtype="float32") as m:
        assert m.weights.config.rope.scaling == "llama3"
        close(m.logits(TOKENS), model.logits(TOKENS))


def test_quantised_values_are_taken_apart(tmp_path: Path) -> None:
    import gguf

    model = small(hidden_size=64, intermediate_size=96, head_dim=16)
    path = model.gguf(tmp_path / "m.gguf", "Q8_0")
    sort = gguf.GGMLQuantizationType.Q8_0

    def coarse(values: Any) -> Any:
        return gguf.dequantize(gguf.quantize(values, sort), sort) if values.ndim == 2 else values

    # Rows are quantised one by one, so that their order does not matter.
    rounded = Small(model.config, {name: coarse(values) for name, values in model.tensors.items()})
    with llm.load(path, dtype="float32") as m:
        close(m.logits(TOKENS), rounded.logits(TOKENS))


def test_bfloat16_is_near(tmp_path: Path) -> None:
    model = small()
    with llm.load(model.folder(tmp_path / "m"), dtype="bfloat16") as m:
        found, expected = m.logits(TOKENS), model.logits(TOKENS)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 5e-2


def test_parts_of_a_text_one_after_the_other_are_the_whole(tmp_path: Path) -> None:
    from prunus.llm.cache import Cache
    from prunus.llm.forward import Part, forward, logits

    model = small()
    with llm.load(model.folder(tmp_path / "m"), dtype="float32") as m:
        whole = m.logits(TOKENS)
        cache, found = Cache(m.weights.config, 1), []
        for piece in ([5, 17, 256], [99], [40], TOKENS[5:]):
            x = forward(m.weights, m.positions, [Part(cache, np.array(piece))])
            found.append(logits(m.weights, x))
        np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5, atol=1e-5)


def test_texts_together_are_texts_alone(tmp_path: Path) -> None:
    from prunus.llm.cache import Cache
    from prunus.llm.forward import Part, forward

    model = small()
    with llm.load(model.folder(tmp_path / "m"), dtype="bfloat16") as m:
        texts = [np.array(TOKENS[:4]), np.array(TOKENS[3:]), np.array([8])]
        parts = [Part(Cache(m.weights.config), text) for text in texts]
        both = forward(m.weights, m.positions, parts)
        alone = [forward(m.weights, m.positions, [Part(Cache(m.weights.config), text)]) for text in texts]
        np.testing.assert_array_equal(both, np.concatenate(alone))


def test_an_error_leaves_the_caches_as_they_were(tmp_path: Path) -> None:
    from prunus.llm.cache import Cache
    from prunus.llm.forward import Part, forward

    with llm.load(small().folder(tmp_path / "m"), dtype="float32") as m:
        cache = Cache(m.weights.config)
        forward(m.weights, m.positions, [Part(cache, np.array(TOKENS))])
        with pytest.raises(ValueError, match="from 0 to 299"):
            forward(m.weights, m.positions, [Part(cache, np.array([300]))])
        with pytest.raises(ValueError, match="room for 96 tokens, and 97"):
            forward(m.weights, m.positions, [Part(cache, np.arange(97 - len(TOKENS)))])

        def fail(number: int, x: Any) -> None:
            if number == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            forward(m.weights, m.positions, [Part(cache, np.array([1, 2]))], None, fail)
        assert cache.length == len(TOKENS)
