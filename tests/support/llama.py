"""Small models of the Llama family with random weights, and what they compute, in plain NumPy float64."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Small:
    """A model's description in Hugging Face's words, and its tensors under Hugging Face's names."""

    config: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return int(self.config["vocab_size"])

    def logits(self, tokens: list[int], dead: dict[int, NDArray[np.bool_]] | None = None) -> Floats:
        """Compute logits (tokens, vocab_size) as the papers say, one formula a line.

        ``dead`` says for a layer which hidden units (tokens, units) are left out.
        """
        c, w = self.config, {name: values.astype(np.float64) for name, values in self.tensors.items()}
        heads, pairs = c["num_attention_heads"], c["num_key_value_heads"]
        size = c.get("head_dim") or c["hidden_size"] // heads
        n = len(tokens)
        angles = np.outer(np.arange(n), inverse_frequencies(c, size))
        cos, sin = (np.tile(f(angles), 2)[:, None] * hot(c) for f in (np.cos, np.sin))

        def turn(x: Floats) -> Floats:
            half = size // 2
            return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin

        def norm(x: Floats, name: str) -> Floats:
            root: Floats = np.sqrt((x**2).mean(-1, keepdims=True) + c["rms_norm_eps"])
            return x / root * w[name]

        x = w["model.embed_tokens.weight"][tokens]
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}."

            def project(x: Floats, name: str, at: str = at) -> Floats:
                return x @ w[f"{at}{name}.weight"].T + w.get(f"{at}{name}.bias", 0)

            h = norm(x, f"{at}input_layernorm.weight")
            q, k, v = (project(h, f"self_attn.{name}_proj").reshape(n, -1, size) for name in "qkv")
            q, k = turn(q), turn(k)
            k, v = (np.repeat(one, heads // pairs, axis=1) for one in (k, v))
            scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(size)
            scores[:, np.arange(n)[:, None] < np.arange(n)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = np.einsum("hij,jhd->ihd", shares, v).reshape(n, -1)
            x = x + project(mixed, "self_attn.o_proj")
            h = norm(x, f"{at}post_attention_layernorm.weight")
            gate, up = project(h, "mlp.gate_proj"), project(h, "mlp.up_proj")
            hidden = gate / (1 + np.exp(-gate)) * up
            if dead is not None:
                hidden = np.where(dead[i], 0, hidden)
            x = x + project(hidden, "mlp.down_proj")
        output = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
        found: Floats = norm(x, "model.norm.weight") @ w[output].T
        return found

    # Files -----------------------------------------------------------------------------------------------

    def folder(self, path: Path) -> Path:
        """Write a Hugging Face folder."""
        import prunus as pr

        path.mkdir(parents=True, exist_ok=True)
        pr.save(path / "model.safetensors", self.tensors)
        (path / "config.json").write_text(json.dumps(self.config))
        tokenizer(self.vocabulary).save(str(path / "tokenizer.json"))
        told = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}
        (path / "tokenizer_config.json").write_text(json.dumps(told))
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
        return path

    def gguf(self, path: Path, quantization: str = "F32", **more: Any) -> Path:
        """Write a GGUF file as llama.cpp's converter does: rotated pairs side by side, but for Qwen2."""
        import gguf

        c, kind = self.config, self.config["model_type"]
        arch = {"mistral": "llama"}.get(kind, kind)
        out = gguf.GGUFWriter(path, arch)
        out.add_block_count(c["num_hidden_layers"])
        out.add_context_length(c["max_position_embeddings"])
        out.add_embedding_length(c["hidden_size"])
        out.add_feed_forward_length(c["intermediate_size"])
        out.add_head_count(c["num_attention_heads"])
        out.add_head_count_kv(c["num_key_value_heads"])
        out.add_layer_norm_rms_eps(c["rms_norm_eps"])
        out.add_rope_freq_base(c["rope_theta"])
        for name, value in more.items():
            getattr(out, name)(value)
        pieces, merges = vocabulary(self.vocabulary)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("smollm")
        out.add_token_list(pieces)
        control = gguf.TokenType.CONTROL
        out.add_token_types([control if piece in SPECIAL else gguf.TokenType.NORMAL for piece in pieces])
        out.add_token_merges(merges)
        out.add_eos_token_id(256)
        out.add_chat_template(TEMPLATE)
        sort = gguf.GGMLQuantizationType[quantization]
        for name, values in self.tensors.items():
            rows = values
            if arch == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = c["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                rows = rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
            if rows.ndim == 2 and sort != gguf.GGMLQuantizationType.F32:
                out.add_tensor(gguf_name(name), gguf.quantize(rows, sort), raw_dtype=sort)
            else:
                out.add_tensor(gguf_name(name), np.ascontiguousarray(rows))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return path


def small(seed: int = 0, biases: bool = False, **changes: Any) -> Small:
    """Make a model: 2 layers, 4 heads of 8 sharing 2, unless told otherwise."""
    c: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    } | changes
    rng = np.random.default_rng(seed)
    size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    wide, deep = c["hidden_size"], c["intermediate_size"]
    rows = {"q": c["num_attention_heads"] * size, "k": c["num_key_value_heads"] * size}
    rows["v"] = rows["k"]
    made: dict[str, NDArray[np.float32]] = {}

    def add(name: str, *shape: int) -> None:
        scale = 1.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2
        values = rng.standard_normal(shape) * scale + (len(shape) == 1 and "norm" in name)
        made[name] = values.astype(np.float32)

    add("model.embed_tokens.weight", c["vocab_size"], wide)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        add(f"{at}input_layernorm.weight", wide)
        add(f"{at}post_attention_layernorm.weight", wide)
        for letter, count in rows.items():
            add(f"{at}self_attn.{letter}_proj.weight", count, wide)
            if biases:
                add(f"{at}self_attn.{letter}_proj.bias", count)
        add(f"{at}self_attn.o_proj.weight", wide, rows["q"])
        add(f"{at}mlp.gate_proj.weight", deep, wide)
        add(f"{at}mlp.up_proj.weight", deep, wide)
        add(f"{at}mlp.down_proj.weight", wide, deep)
    add("model.norm.weight", wide)
    if not c["tie_word_embeddings"]:
        add("lm_head.weight", c["vocab_size"], wide)
    return Small(c, made)


def inverse_frequencies(c: dict[str, Any], size: int) -> Floats:
    """Compute the angle of each pair from one position to the next, by the published rules."""
    plain = c["rope_theta"] ** (-np.arange(0, size, 2) / size)
    told = c.get("rope_scaling") or {}
    kind = told.get("rope_type", told.get("type", "none"))
    if kind == "linear":
        plain = plain / told["factor"]
    elif kind == "llama3":
        lengths = 2 * math.pi / plain
        old, low, high = (
            told[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        for j, length in enumerate(lengths):
            if length > old / low:
                plain[j] /= told["factor"]
            elif length >= old / high:
                share = (old / length - low) / (high - low)
                plain[j] = (1 - share) * plain[j] / told["factor"] + share * plain[j]
    elif kind == "yarn":
        old, base = told["original_max_position_embeddings"], c["rope_theta"]
        ends = [size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)]
        first, last = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), size - 1)
        for j in range(size // 2):
            squeezed = min(max((j - first) / (last - first), 0), 1)
            plain[j] = plain[j] / told["factor"] * squeezed + plain[j] * (1 - squeezed)
    found: Floats = plain
    return found


def hot(c: dict[str, Any]) -> float:
    """Return the factor of sines and cosines."""
    told = c.get("rope_scaling") or {}
    yarn = told.get("rope_type", told.get("type")) == "yarn"
    return 0.1 * math.log(told["factor"]) + 1 if yarn else 1.0


# Tokens ------------------------------------------------------------------------------------------------


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Return pieces and merges: all bytes, three control tokens, and pairs of frequent letters."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pairs = [a + b for a in "etaoins" for b in "hrdlucm"]
    pieces = [*letters, *SPECIAL, *pairs][:size]
    pieces += [f"<unused{i}>" for i in range(size - len(pieces))]
    return pieces, [f"{pair[0]} {pair[1]}" for pair in pairs if pair in pieces]


def tokenizer(size: int) -> tokenizers.Tokenizer:
    """Return the tokenizer that a GGUF file of :meth:`Small.gguf` describes."""
    pieces, merges = vocabulary(size)
    split = tokenizers.pre_tokenizers
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=pairs)
    )
    made.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    return made


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, number, rest = name.split(".", 3)
    for ours, theirs in {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }.items():
        if rest.startswith(ours + "."):
            return f"blk.{number}.{theirs}{rest[len(ours) :]}"
    raise AssertionError(name)
