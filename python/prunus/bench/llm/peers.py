"""The same weights by llama.cpp and by transformers, in a process of their own."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["llama_cpp", "transformers", "write_gguf"]

Arguments = Mapping[str, Any]
_TYPES = {"f16": "F16", "bf16": "BF16"}


def write_gguf(model: str, path: Path, bits: str, told: Callable[[int], object] = lambda count: None) -> None:
    """Copy a GGUF file with its matrices in 16 bits.

    Parameters
    ----------
    model : str
        The file, of any quantisation.
    path : Path
        Where to.
    bits : {"f16", "bf16"}
        The type of matrices; vectors are float32.
    told : callable
        Told of each tensor.
    """
    import gguf

    reader: Any = gguf.GGUFReader(model)
    kind = gguf.GGMLQuantizationType[_TYPES[bits]]
    fields = reader.fields
    out: Any = gguf.GGUFWriter(path, fields["general.architecture"].contents())
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in fields.items():
        if name in own or name.startswith("GGUF."):
            continue
        sub = field.types[-1] if len(field.types) > 1 else None
        out.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        values = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if values.ndim > 1:
            out.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            out.add_tensor(tensor.name, values)
        told(1)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _timed(step: Callable[[int], int], first: int, tokens: int, told: Callable[[int], object]) -> list[float]:
    """Generate greedily; return the seconds of each token."""
    seconds, token = [], first
    for _ in range(tokens):
        begin = time.perf_counter()
        token = step(token)
        seconds.append(time.perf_counter() - begin)
        told(1)
    return seconds


def llama_cpp(arguments: Arguments, told: Callable[[int], object] = lambda count: None) -> dict[str, Any]:
    """Generate by llama.cpp, in memory: ``model``, ``prompt``, ``tokens`` and ``threads``."""
    library: Any = import_module("llama_cpp")
    threads = arguments["threads"]
    model: Any = library.Llama(
        arguments["model"],
        n_ctx=2048,
        n_threads=threads,
        n_threads_batch=threads,
        use_mmap=False,
        verbose=False,
    )

    def step(token: int) -> int:
        model.eval([token])
        return int(np.argmax(model.scores[model.n_tokens - 1]))

    prompt = model.tokenize(arguments["prompt"].encode())
    model.eval(prompt[:-1])
    seconds = _timed(step, prompt[-1], arguments["tokens"], told)
    return {"seconds": float(np.sum(seconds)), "steps": len(seconds)}


def transformers(arguments: Arguments, told: Callable[[int], object] = lambda count: None) -> dict[str, Any]:
    """Generate by transformers in bfloat16: ``model``, a GGUF file or a folder, and as `llama_cpp`."""
    import torch

    library: Any = import_module("transformers")
    torch.set_num_threads(arguments["threads"])
    path = Path(arguments["model"])
    place, more = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    tokenizer: Any = library.AutoTokenizer.from_pretrained(place, **more)
    model: Any = library.AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16, **more).eval()
    with torch.inference_mode():
        ids = tokenizer(arguments["prompt"], return_tensors="pt").input_ids
        past: Any = model(ids[:, :-1], use_cache=True).past_key_values

        def step(token: int) -> int:
            found = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
            return int(found.logits[0, -1].argmax())

        seconds = _timed(step, int(ids[0, -1]), arguments["tokens"], told)
    return {"seconds": float(np.sum(seconds)), "steps": len(seconds)}
