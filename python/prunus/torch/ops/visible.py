"""What compilers see of operations on a GPU: the kernels that they launch, in place of one opaque node.

``torch.library.triton_op`` shows an operation's kernels to ``torch.compile`` by tracing what the operation
does where functional tensors go through it. Operations of this package also run on host memory and in
Triton's interpreter, where there are no kernels to see. So the rule that triton_op registers is registered
here, and asks first where the tensors live. Nothing of this is looked at outside of a compiler's trace, and
launches cost what they did: see :data:`prunus.cuda.runtime.RECORDER`.

An operation stays opaque

* where it reads values back, or its shapes depend on them: ``ssd``, ``grouped_sdd`` and what has
  live blocks of attention as a pattern (``attention_backward``, ``attention_double_backward``);
* where its kernels take addresses of tensors: ``grouped_mm_each``, ``grouped_dsd``, ``grouped_live_*_each``;
* where Inductor cannot take what is around its kernels: indices of ``attention_live`` (torch 2.15);
* where sizes are symbols: tiles and grids are chosen by sizes, which would be fixed by looking at them;
* in ``torch.export``, whose programs are to know operations, not kernels: as triton_op has it;
* if ``PRUNUS_TORCH_VISIBLE=off`` is in the environment when this package is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from prunus.cuda import versions
from prunus.cuda.runtime import RECORDER, Launch
from prunus.torch.ops.operation import Operation

__all__ = ["ENVIRONMENT", "visible"]

#: "off": all operations stay opaque.
ENVIRONMENT: Final = "PRUNUS_TORCH_VISIBLE"
# Older ones do not hand options of the compiler on, nor mutated views to what they are views of.
_SINCE: Final = (2, 15)
# Values of an operand that may be copied for nothing.
_SMALL: Final = 1 << 16


class _OpaqueError(Exception):
    """A launch cannot be shown as it is."""


class _Wrapping(list[Launch]):
    """Has a launch that is noted become a node of the graph that is traced.

    torch finds out what a kernel writes by reading its intermediate code, and sometimes takes what is only
    read for written. Then it goes on with a copy, which is right, but must not be of much memory; nor must a
    tensor be written by one parameter, and taken for written by another, whose copy would stand for it.
    """

    #: The tensors of launches have no memory yet.
    traced: Final = True

    def __init__(self, given: set[int]) -> None:
        super().__init__()
        self._given = given

    def append(self, launch: Launch) -> None:
        kernel, grid, arguments, options = launch
        seen: set[int] = set()
        for one in _written(launch):
            memory = one.untyped_storage()._cdata
            if memory in self._given:  # which is only read, whatever torch says
                if one.numel() > _SMALL:
                    raise _OpaqueError(f"{kernel.__name__} would copy an operand of shape {tuple(one.shape)}")
            elif memory in seen:
                raise _OpaqueError(f"{kernel.__name__} would write a tensor that it is given twice")
            seen.add(memory)
        torch.library.wrap_triton(kernel)[grid](*arguments, **options)


def _written(launch: Launch) -> list[torch.Tensor]:
    """Return the tensors that torch takes for written by a launch; one may come several times."""
    from torch._higher_order_ops.triton_kernel_wrap import identify_accessed_tensors

    names = launch.kernel.arg_names
    passed = {**dict(zip(names, launch.arguments, strict=False)), **launch.options}
    known = {name: _inner(passed[name]) for name in names}
    accesses = identify_accessed_tensors(launch.kernel, dict(known), {})
    found = (known[dependency.name] for dependency in accesses.read_writes.writes)
    return [one for one in found if isinstance(one, torch.Tensor)]


def _inner(value: Any) -> Any:
    """Return what a functional tensor stands for now."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    return value.from_functional() if isinstance(value, FunctionalTensor) else value


@contextmanager
def _wrapped(given: set[int]) -> Iterator[None]:
    token = RECORDER.set(_Wrapping(given))
    try:
        yield
    finally:
        RECORDER.reset(token)


def visible(*ops: Operation, unless: Callable[..., bool] | None = None) -> None:
    """Have compilers see the kernels of operations on a GPU, and what torch computes around them.

    Parameters
    ----------
    *ops : Operation
        The operations; what they do on a GPU is traced by torch: no values are read, and no addresses.
    unless : callable, optional
        Of an operation's arguments, says that these stay opaque.
    """
    if not _serves():
        return
    from torch._library.triton import triton_ops_to_kernels
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    for op in (one.op for one in ops):
        op.register_torch_dispatch(FunctionalTensorMode, _rule(op._init_fn, unless))
        triton_ops_to_kernels[op._qualname] = _Sources()


@cache
def _serves() -> bool:
    """Say whether torch can show kernels."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    return numbers >= _SINCE and os.environ.get(ENVIRONMENT, "").lower() != "off" and versions.installed()


def _rule(compute: Callable[..., Any], unless: Callable[..., bool] | None) -> Callable[..., Any]:
    """Return how an operation goes through functional tensors."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_shown(types, args) and (unless is None or not unless(*args)):
            # What was traced until then nobody uses: the compiler drops it.
            with contextlib.suppress(_OpaqueError):
                return _shown(mode, compute, args, kwargs)
        return mode.__torch_dispatch__(op, types, args, kwargs)

    return rule


def _shown(mode: Any, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace what an operation does, to tensors of its own: so its operands are not taken for written."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    with mode:
        inner = [_inner(one) for one in args]
        given = {one.untyped_storage()._cdata for one in inner if isinstance(one, torch.Tensor)}
        own = [
            FunctionalTensor.to_functional(one) if isinstance(old, FunctionalTensor) else old
            for old, one in zip(args, inner, strict=True)
        ]
        with _wrapped(given):
            return compute(*own, **kwargs)


def _is_shown(types: Any, args: tuple[Any, ...]) -> bool:
    """Say whether arguments are plain tensors on one GPU, of sizes that are known."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    if custom_triton_ops_decomposition_disabled() or versions.libraries().interpreted:
        return False
    if not all(kind in (torch.Tensor, FunctionalTensor) or issubclass(kind, FakeTensor) for kind in types):
        return False
    devices = set()
    for one in args:
        if isinstance(one, (list, tuple, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return False
        if isinstance(one, torch.Tensor):
            devices.add(one.device)
            if not all(type(size) is int for size in (*one.shape, *one.stride(), one.storage_offset())):
                return False
    return len(devices) == 1 and devices.pop().type == "cuda"


class _Sources(list[object]):
    """What decides how operations are shown, for the cache that torch keeps from one process to the next.

    torch takes the sources of the kernels of a triton_op. Here the host's code as well has a part in what is
    launched, and what was measured: of all of them there is a fingerprint, in the shape of a kernel.
    """

    def __iter__(self) -> Iterator[object]:
        return iter([SimpleNamespace(src=f"# {_fingerprint()}", fn=_nothing, __name__="prunus")])


def _nothing() -> None:
    pass


def _fingerprint() -> str:
    from prunus.cuda.tuning import file_of_findings

    made, path = hashlib.sha256(_code().encode()), file_of_findings()
    if path is not None:
        with contextlib.suppress(OSError):  # there mostly is none
            made.update(path.read_bytes())
    return made.hexdigest()


@cache
def _code() -> str:
    made = hashlib.sha256()
    root = Path(versions.__file__).parent.parent
    for path in sorted((*root.glob("cuda/**/*.py"), *root.glob("torch/ops/*.py"))):
        made.update(path.read_bytes())
    return made.hexdigest()
