"""A GPU that is not there: torch's fake tensors on it, and what compilers make of operations on them.

Fake tensors have shapes and no memory, so a graph and Inductor's source of it can be made without a GPU, and
each kernel of that source can be compiled for one. What would be asked of a driver is answered here.
"""

import ast
import contextlib
import importlib.util
import sys
import types
from unittest import mock

import torch
import triton
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from prunus.cuda.chips import CHIPS
from prunus.cuda.runtime import AHEAD, Place

ARCH, CAPABILITY = "sm_90", (9, 0)
CHIP = CHIPS[ARCH]
PROPERTIES = types.SimpleNamespace(
    name=CHIP.name,
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=CHIP.multiprocessors,
    regs_per_multiprocessor=1 << 16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
)


class Driver:
    """What Triton asks a driver for before it launches anything."""

    def get_current_target(self):
        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_current_device(self):
        return 0

    def get_active_torch_device(self):
        return torch.device("cuda", 0)


@contextlib.contextmanager
def modes(shapes):
    with FakeTensorMode(shape_env=shapes) as mode, torch.no_grad():
        yield mode


@contextlib.contextmanager
def gpu(symbols=False):
    """Have fake tensors on "cuda" be on a GPU of an architecture; yields their mode."""
    shapes = ShapeEnv() if symbols else None
    there = Place(torch.device("cuda", 0), ARCH, CHIP.name, CHIP.multiprocessors, CHIP.shared)
    token = AHEAD.set(there)
    try:
        with mock.patch.object(driver, "_active", Driver()), modes(shapes) as mode:
            yield mode
    finally:
        AHEAD.reset(token)


def fake(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def graph_of(function, *args):
    """What an ahead-of-time compiler is given of a function, within :func:`gpu`."""
    found = []

    def keep(module, _):
        found.append(module)
        return module

    aot_function(function, fw_compiler=keep)(*args)
    return found[0]


def targets(module):
    """What the nodes of a graph call."""
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


class Found(BaseException):
    """Ends a compilation that has told what was asked for: nothing on the way out may handle it."""


def code_of(function, *args):
    """Inductor's source of a function, within :func:`gpu`."""
    from torch._dynamo import device_interface
    from torch._inductor import compile_fx, config, scheduler
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties

    answers = {
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: CAPABILITY,
        "is_bf16_supported": lambda including_emulation=True: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
    }
    made = []

    def stop(lowering):
        made.append(lowering.codegen()[0].value)
        raise Found

    module = make_fx(function)(*args)
    mode = args[0].fake_mode
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            if name in vars(device_interface.CudaInterface):
                stack.enter_context(
                    mock.patch.object(device_interface.CudaInterface, name, staticmethod(answer))
                )
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_device_properties))
        stack.enter_context(mock.patch.object(scheduler, "has_triton", return_value=True))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", stop))
        stack.enter_context(torch._guards.tracing(torch._guards.TracingContext(mode)))
        # Folding would compute constants on the GPU; and there is nothing to be kept.
        stack.enter_context(config.patch(joint_graph_constant_folding=False, fx_graph_cache=False))
        stack.callback(DeviceProperties.create.cache_clear)
        with contextlib.suppress(Found):
            compile_fx.compile_fx(module, args)
    return made[0]


def kernels(code, folder):
    """Compile the user's kernels of Inductor's source, as it would: Triton's compiled kernels by name."""
    from torch._inductor.runtime import triton_helpers

    found, compile_ = {}, triton.compile
    for node in ast.walk(ast.parse(code)):
        if not (isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("async_compile.triton(")):
            continue
        name, (kernel, source) = node.targets[0].id, (one.value for one in node.value.args)
        if "user_autotune" not in source:
            continue
        path = folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"generated_{name}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tuner = getattr(module, kernel)

        def stop(*args, name=name, **options):
            found[name] = compile_(*args, **options)
            raise Found

        with (
            contextlib.suppress(Found),
            mock.patch.object(triton, "compile", stop),
            mock.patch.object(triton_helpers, "set_driver_to_gpu"),
        ):
            tuner._precompile_config(tuner.configs[0])
        del sys.modules[spec.name]
    return found
