"""Graphs with kernels in them, on host memory: Triton's interpreter runs the kernels.

A graph is traced by a process that compiles kernels (:func:`told`), and replayed by one that interprets them:
``TRITON_INTERPRET=1 python replay.py FILE`` prints how far results are from what is expected.
"""

import importlib
import re
import sys

import torch

OPTIONS = {"enable_fp_fusion", "num_warps", "num_stages"}


def told(module, inputs, expected):
    """A graph as what can be saved: its code, and what its launches refer to."""
    import triton.language as tl
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    kernels, constants = {}, {}
    for node in module.graph.nodes:
        if "triton_kernel_wrapper" not in str(node.target):
            continue
        at, of = node.kwargs["kernel_idx"], node.kwargs["constant_args_idx"]
        kernel = kernel_side_table.get_kernel(at)
        kernel = getattr(kernel, "fn", kernel) if not hasattr(kernel, "src") else kernel
        kernels[at] = kernel.fn.__module__, kernel.fn.__name__
        constants[of] = {
            name: ("dtype", value.name) if isinstance(value, tl.dtype) else ("value", value)
            for name, value in kernel_side_table.get_constant_args(of).items()
        }
    code = module.code.replace("torch.ops.higher_order.triton_kernel_wrapper_functional", "launch")
    code = re.sub(r"device\(type='cuda', index=0\)", "'cpu'", code)
    return {
        "code": code,
        "kernels": kernels,
        "constants": constants,
        "inputs": list(inputs),
        "expected": list(expected),
    }


def replay(graph):
    """What a graph returns."""
    import triton.language as tl

    def launch(
        *,
        kernel_idx,
        constant_args_idx,
        grid,
        kwargs,
        tensors_to_clone,
        tma_descriptor_metadata,
        launch_kwargs,
    ):
        assert not tma_descriptor_metadata
        module, name = graph["kernels"][kernel_idx]
        kernel = getattr(importlib.import_module(module), name)
        for key, (kind, value) in graph["constants"][constant_args_idx].items():
            kwargs = {**kwargs, key: getattr(tl, NAMES[value]) if kind == "dtype" else value}
        written = {}
        for key in tensors_to_clone:
            old = kwargs[key]
            made = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
            written[key] = made.copy_(old)
        passed = {key: value for key, value in {**kwargs, **written}.items() if key not in OPTIONS}
        kernel[grid[0]](**passed)
        return written

    names = {"torch": torch, "launch": launch, "inf": float("inf"), "nan": float("nan")}
    exec(graph["code"], names)
    return names["forward"](None, *graph["inputs"])


NAMES = {"fp32": "float32", "fp64": "float64", "fp16": "float16", "bf16": "bfloat16", "int32": "int32"}


def main(path):
    from support import interpreter

    interpreter.use()
    for name, graph in torch.load(path, weights_only=True).items():
        made = replay(graph)
        assert [one.shape for one in made] == [one.shape for one in graph["expected"]], name
        worst = max(
            float((one.double() - other.double()).abs().max())
            for one, other in zip(made, graph["expected"], strict=True)
        )
        print(f"{name} {worst:.3g}")


if __name__ == "__main__":
    main(sys.argv[1])
