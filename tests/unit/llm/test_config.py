"""What ``config.json`` and the fields of GGUF files say of a model, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunus as pr
from prunus import FormatError, llm
from prunus.llm import Config, Rope, UnsupportedModelError
from support.llama import small

HF: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
NEEDED = (*list(HF)[:5], "vocab_size", "max_position_embeddings")
GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 160,
    "llama.block_count": 3,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 1024,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 50000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def from_gguf(fields: dict[str, Any], factors: Any = None) -> Config:
    return Config.from_gguf(fields, 500, tied=True, factors=factors)


# What they say -----------------------------------------------------------------------------------------


def test_both_formats_describe_the_same_model() -> None:
    expected = Config("llama", 64, 160, 3, 4, 2, 16, 500, 1024, 1e-5, Rope(50000.0), True)
    assert Config.from_hugging_face(HF) == expected
    found = from_gguf(GGUF)
    assert found.rope.frequencies(16).tolist() == expected.rope.frequencies(16).tolist()
    assert Config(**{**_fields(found), "rope": expected.rope}) == expected
    assert (expected.query_size, expected.key_size) == (64, 32)


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_what_may_be_left_out() -> None:
    few = {key: HF[key] for key in NEEDED}
    found = Config.from_hugging_face({**few, "head_dim": None, "num_key_value_heads": None})
    assert (found.num_key_value_heads, found.head_dim, found.rms_norm_eps) == (4, 16, 1e-6)
    assert (found.rope, found.tie_word_embeddings) == (Rope(10000.0), False)
    fields = without(without(GGUF, "llama.rope.freq_base"), "llama.attention.head_count_kv")
    assert (from_gguf(fields).num_key_value_heads, from_gguf(fields).rope.theta) == (4, 10000.0)


def test_head_dim_may_be_said() -> None:
    assert Config.from_hugging_face(HF | {"head_dim": 24}).head_dim == 24
    assert from_gguf(GGUF | {"llama.attention.key_length": 24}).head_dim == 24


@pytest.mark.parametrize(
    ("more", "context"),
    [
        ({"sliding_window": 100}, 100),
        ({"sliding_window": 4096}, 1024),
        ({"sliding_window": None}, 1024),
        ({"sliding_window": 100, "use_sliding_window": False}, 1024),
        ({"sliding_window": 100, "use_sliding_window": True}, 100),
    ],
)
def test_the_context_ends_with_a_sliding_window(more: dict[str, Any], context: int) -> None:
    assert Config.from_hugging_face(HF | {"model_type": "mistral"} | more).max_position_embeddings == context


def test_the_window_of_a_gguf_file() -> None:
    assert from_gguf(GGUF | {"llama.attention.sliding_window": 100}).max_position_embeddings == 100


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_scalings_in_the_words_of_older_and_newer_files(key: str) -> None:
    def rope(told: dict[str, Any]) -> Rope:
        return Config.from_hugging_face(HF | {key: told}).rope

    assert rope({"rope_type": "default"}) == Rope(50000.0)
    assert rope({"rope_type": "default", "rope_theta": 7.0}) == Rope(7.0)
    assert rope({"type": "linear", "factor": 2.0}) == Rope(50000.0, "linear", 2.0, 1024)
    assert rope(LLAMA3) == Rope(50000.0, "llama3", 8.0, 256, 1.0, 4.0)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert rope(yarn) == Rope(50000.0, "yarn", 4.0, 256, 1.0, 32.0)
    told = rope(yarn | {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.5})
    assert told == Rope(50000.0, "yarn", 4.0, 256, 2.0, 16.0, 1.5)
    assert told.scale == 1.5


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scalings_of_gguf_files(kind: str) -> None:
    fields = {
        "llama.rope.scaling.type": kind,
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 256,
    }
    told = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 256}
    found, expected = (
        from_gguf(GGUF | fields).rope,
        Config.from_hugging_face(HF | {"rope_scaling": told}).rope,
    )
    np.testing.assert_array_equal(found.frequencies(16), expected.frequencies(16))
    assert found.scale == expected.scale == (0.1 * math.log(4) + 1 if kind == "yarn" else 1)


def test_a_factor_alone_is_linear_in_gguf_files() -> None:
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        found = from_gguf(GGUF | {f"llama.{name}": 2.0}).rope
        np.testing.assert_array_equal(found.frequencies(16), Rope(50000.0, "linear", 2.0).frequencies(16))
    assert from_gguf(GGUF | {"llama.rope.scaling.factor": 1.0}).rope.scaling == "none"


def test_the_ends_of_yarn_in_gguf_files() -> None:
    fields = {"type": "yarn", "factor": 4.0, "original_context_length": 256, "yarn_beta_fast": 16.0}
    fields |= {"yarn_beta_slow": 2.0, "yarn_ext_factor": 1.0}
    found = from_gguf(GGUF | {f"llama.rope.scaling.{name}": value for name, value in fields.items()})
    assert found.rope == Rope(50000.0, "yarn", 4.0, 256, 2.0, 16.0)


def test_yarn_that_does_not_stretch_does_not_heat() -> None:
    assert Rope(10000.0, "yarn", 0.5, 256, 1.0, 32.0).scale == 1.0


def test_json_gives_back_what_was_written() -> None:
    config = Config.from_hugging_face(HF | {"rope_scaling": LLAMA3})
    assert Config.from_json(config.to_json()) == config


# What is refused ---------------------------------------------------------------------------------------

REFUSED_HF: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "architecture 'gpt2'; built here are llama, mistral, qwen2"),
    ({"hidden_act": "gelu"}, "activation 'gelu'; built here is 'silu'"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        "partial_rotary",
    ),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "yarn with mscale"),
    ({"rope_scaling": without(LLAMA3, "low_freq_factor")}, "no 'low_freq_factor'"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "positions with high=1.0"),
    ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "positions with original=0"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "positions with factor=0"),
    ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "positions with factor=inf"),
    ({"rope_scaling": "linear"}, "damaged"),
    ({"rope_theta": -1.0}, r"positions with theta=-1\.0"),
    ({"rope_theta": math.nan}, "positions with theta=nan"),
    ({"num_attention_heads": 0}, "damaged"),
    ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
    ({"num_key_value_heads": -1}, "num_key_value_heads must be above 0, got -1"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"hidden_size": None}, "damaged"),
    ({"hidden_size": "much"}, "damaged"),
    ({"vocab_size": 0}, "vocab_size must be above 0, got 0"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps must be above 0, got nan"),
    ({"sliding_window": -5}, "max_position_embeddings must be above 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_HF)
def test_config_json_that_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Config.from_hugging_face(HF | change)


@pytest.mark.parametrize("name", [key for key in NEEDED if key != "model_type"])
def test_what_config_json_lacks_is_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"no '{name}'"):
        Config.from_hugging_face(without(HF, name))


REFUSED_GGUF: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "gemma2"}, "architecture 'gemma2'; built here are llama, mistral, qwen2"),
    ({"llama.expert_count": 8}, "mixture of experts"),
    ({"llama.attention.head_count_kv": [2, 1, 2]}, "differ from each other .*head_count_kv"),
    ({"llama.attention.head_count": [4, 4, 4]}, "differ from each other .*head_count"),
    ({"llama.feed_forward_length": [160, 80, 160]}, "differ from each other .*feed_forward_length"),
    ({"llama.rope.dimension_count": 8}, "a part of each head only"),
    ({"llama.attention.value_length": 8}, "values and keys of different sizes"),
    ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
    ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, "factor=0"),
    ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 1.2}, "yarn with attn_factor"),
    (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_log_multiplier": 0.1},
        "yarn with yarn_log",
    ),
    ({"llama.attention.head_count": 0}, "damaged"),
    ({"llama.embedding_length": "wide"}, "damaged"),
    ({"llama.embedding_length": [1]}, "damaged"),
    ({"llama.block_count": 0}, "num_hidden_layers must be above 0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED_GGUF)
def test_gguf_fields_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        from_gguf(GGUF | change)


@pytest.mark.parametrize("name", [key for key in GGUF if not key.endswith(("head_count_kv", "freq_base"))])
def test_what_gguf_fields_lack_is_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(none\)" if name.startswith("general") else name):
        from_gguf(without(GGUF, name))


def test_tabulated_wavelengths_of_an_unknown_kind() -> None:
    for factors in (np.linspace(1, 3, 8), np.ones(5)):
        with pytest.raises(UnsupportedModelError, match="unknown kind"):
            from_gguf(GGUF, factors)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"rope": {}}', '{"rope": "x"}', '{"rope": {"theta": "x"}}', '{"rope": []}']
)
def test_json_that_is_damaged(text: str) -> None:
    with pytest.raises(UnsupportedModelError, match="description is damaged"):
        Config.from_json(text)
    good = json.loads(Config.from_hugging_face(HF).to_json())
    for change in ({"hidden_size": "x"}, {"hidden_size": None}, {"more": 1}, {"rope": {"theta": "x"}}):
        with pytest.raises(UnsupportedModelError, match="description is damaged"):
            Config.from_json(json.dumps(good | change))


# In files ----------------------------------------------------------------------------------------------


def test_a_file_that_claims_a_billion_layers(tmp_path: Path) -> None:
    folder = small(num_hidden_layers=1).folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(FormatError, match=r"no tensor model\.layers\.1\."):
        llm.load(folder)
    model = small(num_hidden_layers=1)
    model.config["num_hidden_layers"] = 4 * 10**9
    with pytest.raises(FormatError, match=r"no tensor model\.layers\.1\."):
        llm.load(model.gguf(tmp_path / "m.gguf"))


def test_a_bias_of_another_shape(tmp_path: Path) -> None:
    model = small(biases=True)
    model.tensors["model.layers.0.self_attn.k_proj.bias"] = np.ones(5, np.float32)
    with pytest.raises(FormatError, match=r"k_proj\.bias has shape \(5,\), expected \(16,\)"):
        llm.load(model.folder(tmp_path / "m"))


def test_a_packed_file_without_its_description(tmp_path: Path) -> None:
    pr.save(tmp_path / "p.safetensors", {"a": np.ones(3, np.float32)}, metadata={"llm": "1"})
    with pytest.raises(UnsupportedModelError, match="description is damaged"):
        llm.load(tmp_path / "p.safetensors")
    pr.save(tmp_path / "p.safetensors", {"a": np.ones(3, np.float32)}, metadata={"llm": "99"})
    with pytest.raises(FormatError, match="format '99', this version reads '1'"):
        llm.load(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", b'{"chat_template": [3]}'),
        ("generation_config.json", b'{"eos_token_id": ["x"]}'),
        ("generation_config.json", b"[]"),
    ],
)
def test_what_goes_with_a_tokenizer_may_be_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    folder = small().folder(tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises(FormatError, match=r"damaged|expected an object|expected a token"):
        llm.load(folder)


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 9}, (7,)),
        ({"eos_token_id": [7, 8]}, {}, (7, 8)),
        ({"eos_token_id": None}, {"eos_token_id": [9, 3]}, (9, 3)),
        ({"eos_token_id": []}, {"eos_token_id": 9}, (9,)),
        ({}, {"eos_token_id": 0}, (0,)),
        (None, {"eos_token_id": 9}, (9,)),
        # Where neither says, it is the tokenizer's <|end|>.
        ({"eos_token_id": None}, {"eos_token_id": None}, (256,)),
        (None, {}, (256,)),
    ],
)
def test_what_ends_a_text(tmp_path: Path, generation: Any, config: Any, stops: tuple[int, ...]) -> None:
    folder = ends(tmp_path, generation, config)
    with llm.load(folder) as m:
        assert m.speech.stops == stops


def ends(tmp_path: Path, generation: Any, config: Any) -> Path:
    """Write a model whose files say this of what ends a text."""
    model = small()
    folder = model.folder(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(model.config | config))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize("end", [None, "<|nowhere|>", ""])
def test_a_model_that_nothing_ends(tmp_path: Path, end: str | None) -> None:
    folder = ends(tmp_path, None, {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    with llm.load(folder) as m:
        assert m.speech.stops == ()


@pytest.mark.parametrize("bad", ["7", 7.0, True, -1, [7, "8"], [None], {"id": 7}, [[7]]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ends_that_are_no_tokens(tmp_path: Path, bad: Any, file: str) -> None:
    said = {"eos_token_id": bad}
    folder = ends(tmp_path, said, {}) if file[0] == "g" else ends(tmp_path, None, said)
    with pytest.raises(FormatError, match=f"{file}: expected a token's number"):
        llm.load(folder)
