"""``llm pack``: the file, what it refuses, and what is left when it fails."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunus as pr
from prunus import FormatError, llm
from prunus.llm import UnsupportedModelError
from support.llama import small

BF16 = "bfloat16"


def test_the_file_opens_elsewhere_with_the_models_values(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = small(intermediate_size=48)
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path, dtype="float32", decide="up")
    w = model.tensors
    with safe_open(path, "numpy") as file:
        at = "model.layers.1."
        qkv = np.concatenate([w[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
        np.testing.assert_array_equal(file.get_tensor("layers.1.attention.qkv"), qkv)
        np.testing.assert_array_equal(file.get_tensor("layers.1.ffn.panel"), w[f"{at}mlp.up_proj.weight"])
        bundle = file.get_tensor("layers.1.ffn.bundle")
        both = np.hstack([w[f"{at}mlp.gate_proj.weight"], w[f"{at}mlp.down_proj.weight"].T])
        np.testing.assert_array_equal(bundle[:, : both.shape[1]], both)
        np.testing.assert_array_equal(file.get_tensor("embeddings"), w["model.embed_tokens.weight"])
        assert "output" not in file.keys()  # noqa: SIM118  it is no mapping


def test_bundles_are_padded_to_pages_where_that_wastes_little() -> None:
    from prunus.llm.packing import pitch_of

    for nbytes in (1, 100, 2304, 3072, 3456, 4096, 4097, 5000, 16384, 24576):
        pitch = pitch_of(nbytes)
        whole = -(-nbytes // 4096) * 4096
        assert pitch == (whole if whole * 0.75 <= nbytes else nbytes), nbytes


def test_a_padded_layer_computes_the_same(tmp_path: Path) -> None:
    model = small(hidden_size=448, intermediate_size=64, num_attention_heads=7, num_key_value_heads=1)
    path = tmp_path / "p.safetensors"
    llm.pack(model.folder(tmp_path / "m"), path, dtype="float32", decide="up")
    with pr.open(path) as file:
        bundle = file.describe("layers.0.ffn").bundle  # type: ignore[union-attr]
        assert bundle.shape[1] * 4 == 4096 > 2 * 448 * 4
    with llm.load(path, "1 MiB") as paged, llm.load(path) as memory:
        tokens = [1, 2, 3, 250]
        np.testing.assert_array_equal(paged.logits(tokens), memory.logits(tokens))
        np.testing.assert_allclose(memory.logits(tokens), model.logits(tokens), rtol=1e-3, atol=1e-3)


def test_checksums_are_there_and_hold(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    folder = small().folder(tmp_path / "m")
    llm.pack(folder, path)
    with pr.open(path) as file:
        assert file.has_checksums
        assert file.verify() == []
    llm.pack(folder, path, checksums=False)
    with pr.open(path) as file:
        assert not file.has_checksums


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2'; built here are llama, mistral, qwen2"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"hidden_size": None}, "damaged"),
        ({"vocab_size": 0}, "vocab_size must be above 0"),
    ],
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = small().folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModelError, match=message):
        llm.pack(folder, tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()


def test_missing_and_strange_tensors_are_named(tmp_path: Path) -> None:
    model = small()
    down = model.tensors.pop("model.layers.1.mlp.down_proj.weight")
    with pytest.raises(FormatError, match=r"no tensor model\.layers\.1\.mlp\.down_proj\.weight"):
        llm.load(model.folder(tmp_path / "a"))
    model.tensors["model.layers.1.mlp.down_proj.weight"] = down.T.copy()
    with pytest.raises(FormatError, match=r"has shape \(48, 32\), expected \(32, 48\)"):
        llm.load(model.folder(tmp_path / "b"))
    model.tensors["model.layers.1.mlp.down_proj.weight"] = down
    model.tensors["model.layers.1.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    with pytest.raises(UnsupportedModelError, match="q_norm"):
        llm.load(model.folder(tmp_path / "c"))


def test_files_that_are_missing_cut_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model"):
        llm.load(tmp_path / "nothing")
    text = tmp_path / "text.bin"
    text.write_text("hello")
    with pytest.raises(FormatError, match="expected a GGUF file"):
        llm.load(text)
    folder = small().folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        llm.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="expected JSON"):
        llm.load(folder)
    model = small().gguf(tmp_path / "m.gguf")
    whole = model.read_bytes()
    for size in (4, 40, 1000, len(whole) // 2, len(whole) - 64):
        model.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="GGUF"):
            llm.load(model)
    pr.save(tmp_path / "other.safetensors", {"a": np.ones(3, np.float32)})
    with pytest.raises(FormatError, match="expected a model that"):
        llm.load(tmp_path / "other.safetensors")


def test_a_packed_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(small().folder(tmp_path / "m"), path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            llm.load(path, "1 MiB")


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    folder, path = small().folder(tmp_path / "m"), tmp_path / "p.safetensors"
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16'"):
        llm.pack(folder, path, dtype="float64")
    with pytest.raises(ValueError, match="decide must be one of up, gate, predictor"):
        llm.pack(folder, path, decide="down")
    with pytest.raises(ValueError, match="llm pack"):
        llm.load(folder, "1 MiB")
    llm.pack(folder, path)
    with pytest.raises(ValueError, match="was packed with decide=up, got decide=gate"):
        llm.load(path, decide="gate")
    with pytest.raises(ValueError, match="was packed with dtype=bfloat16"):
        llm.load(path, dtype="float32")
    with pytest.raises(ValueError, match="only one"):
        llm.load(path, "1 MiB", pager=pr.paged.Pager("1 MiB"))


def test_interrupted_packing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.llm.checkpoint import Checkpoint

    folder, path = small().folder(tmp_path / "m"), tmp_path / "out" / "p.safetensors"
    path.parent.mkdir()
    read, calls = Checkpoint.read, []

    def interrupted(self: Checkpoint, name: str, *rest: Any) -> Any:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read(self, name, *rest)

    monkeypatch.setattr(Checkpoint, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.pack(folder, path)
    assert len(calls) == 5
    assert os.listdir(path.parent) == []


def test_the_cache_folder_keeps_one_file_for_each_state_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.llm.library import cache_folder, packed

    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    model = small().gguf(tmp_path / "m.gguf")
    first = packed(model)
    assert first.parent == cache_folder() == tmp_path / "cache"
    before = first.stat().st_mtime_ns
    assert packed(model) == first
    assert first.stat().st_mtime_ns == before
    assert packed(model, decide="gate") != first
    small(seed=1).gguf(model)
    os.utime(model, ns=(1, 1))
    assert packed(model) not in (first, None)
