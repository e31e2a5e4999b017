"""The one place that knows which versions of torch and Triton serve, and what differs between them."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from prunus._errors import PrunusError

__all__ = [
    "TESTED",
    "TORCH",
    "TRITON",
    "Libraries",
    "Specialised",
    "compiled",
    "descriptor",
    "driver",
    "installed",
    "launch_options",
    "libraries",
    "missing",
    "specialised",
    "tool",
]

#: The oldest versions that are taken.
TORCH: Final = (2, 11)
TRITON: Final = (3, 6)
#: What continuous integration runs and compiles with: torch, Triton.
TESTED: Final = ((2, 15), (3, 9))


class Libraries(NamedTuple):
    """What was found.

    Attributes
    ----------
    torch, triton : module
    interpreted : bool
        Whether kernels run in Triton's interpreter on the CPU (``TRITON_INTERPRET=1``).
    versions : tuple of str
        Of torch and Triton.
    """

    torch: Any
    triton: Any
    interpreted: bool
    versions: tuple[str, str]


def installed() -> bool:
    """Say whether torch and Triton are there, without importing them."""
    return not missing()


def missing() -> list[str]:
    """Return the names of what is not there, without importing the others."""
    return [name for name in ("torch", "triton") if not _found(name)]


def _found(name: str) -> bool:
    """Say whether a package can be imported; one that a program hid (None in sys.modules) cannot."""
    try:
        return find_spec(name) is not None
    except ValueError:
        return False


@cache
def libraries() -> Libraries:
    """Return torch and Triton.

    Raises
    ------
    PrunusError
        If one is missing or older than what is taken.
    """
    found = []
    for name, least in (("torch", TORCH), ("triton", TRITON)):
        if not _found(name):
            raise PrunusError(
                f"the device 'cuda' needs {name}, which is not installed: pip install 'prunus[cuda]'"
            )
        version = metadata.version(name)
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < least:
            raise PrunusError(
                f"the device 'cuda' needs {name} {least[0]}.{least[1]} or later, found {version}: "
                f"pip install --upgrade 'prunus[cuda]'"
            )
        found.append(version)
    import torch
    import triton

    # Kernels are decorated when they are imported, and are for the interpreter or for a GPU from then on.
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
    if interpreted == isinstance(triton.language.cdiv, triton.JITFunction):
        raise PrunusError(
            f"TRITON_INTERPRET was {'set' if interpreted else 'taken away'} after Triton had been imported, "
            "which decides by it how kernels run: put it in the environment before Python starts"
        )
    if interpreted:
        _relax()
    return Libraries(torch, triton, interpreted, (found[0], found[1]))


def _relax() -> None:
    """Have the interpreter compute indices as a GPU does: it else checks each sum for overflow, at length."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if getattr(getattr(builder, "options", None), "sanitize_overflow", False):
        builder.options = replace(builder.options, sanitize_overflow=False)


def launch_options(interpreted: bool) -> dict[str, Any]:
    """Return the options that every launch and every compilation has.

    Multiplications and additions are fused, as on the host; Triton 3.9 warns unless told, as later versions
    will not fuse by default.
    """
    return {} if interpreted else {"enable_fp_fusion": True}


class Specialised(NamedTuple):
    """A kernel as a launch would compile it.

    Attributes
    ----------
    source : ASTSource
        The kernel, the types of its arguments, which of them are constants, and what is known of the others:
        that they are 1, or divisible by 16.
    options : dict
        Warps, stages and the like.
    target : GPUTarget
        For which chips.
    key : str
        The same for launches that share what is compiled.
    """

    source: Any
    options: dict[str, Any]
    target: Any
    key: str


def specialised(
    kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], capability: int
) -> Specialised:
    """Return what a launch would compile for GPUs of a compute capability (80, 90, ...), without a GPU.

    Triton's own code says which arguments are specialised and how, the code that a launch runs; only the
    target does not come from a driver. Meta tensors count as aligned, as new memory is.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {"debug": False, **options}
    bound, specialisation, others = bind(*arguments, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialisation, others
    )
    source = ASTSource(kernel, signature, constants, attributes)
    key = "-".join((source.hash(), str(capability), parsed.hash()))
    return Specialised(source, parsed.__dict__, target, key)


def compiled(what: Specialised) -> Any:
    """Compile a kernel without a GPU: Triton's ``CompiledKernel``, with ``asm`` and ``metadata``."""
    import triton

    return triton.compile(what.source, target=what.target, options=what.options)


def descriptor(tensor: Any, box: tuple[int, int]) -> Any:
    """Return what describes a matrix to the tensor memory accelerator, made by the host as a launch begins.

    Parameters
    ----------
    tensor : Tensor
        Two dimensions, the last one contiguous; the other one's stride and the first value lie at multiples
        of 16 bytes.
    box : tuple of int
        What is loaded at once.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(box))


def driver() -> str:
    """Return the newest version of CUDA that the driver serves, such as "13.0", or "none"."""
    torch = libraries().torch
    if not torch.cuda.is_available():
        return "none"
    number = int(torch._C._cuda_getDriverVersion())
    return f"{number // 1000}.{number % 1000 // 10}"


def tool(name: str) -> str:
    """Return the path of one of CUDA's tools that come with Triton: "cuobjdump", "ptxas" or "nvdisasm"."""
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)
