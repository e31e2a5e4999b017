"""Products that were launched before: the second call with operands of the same form launches at once.

What a product launches depends on shapes, strides and dtypes, which are looked at, checked and cut into tiles
on the host: several times what the launch itself takes. An array keeps what its products launched, with gaps
where operand and result were. Values and patterns are data of the launch, and tiles that are measured
meanwhile are another launch, so nothing here can be out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._trace import ACTIVE as TRACING
from prunus.cuda.configs import epoch
from prunus.cuda.runtime import RECORDER, Launch, empty, launch, watched
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    from prunus.cuda.arrays import BSR

__all__ = ["Plan", "Plans", "again", "multiply"]

# Forms of operands of which an array keeps what they launch.
_MOST: Final = 64


class Plan(NamedTuple):
    """A launch, and where in its arguments the operand and the result are."""

    launch: Launch
    operand: tuple[int, ...]
    result: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any


Plans = dict[tuple[Any, ...], Plan]


def _key(w: BSR, x: Any, flip: bool) -> tuple[Any, ...] | None:
    """Return what a launch depends on; None for what is not worth remembering, or is to be refused."""
    torch = libraries().torch
    if type(x) is not torch.Tensor or x.ndim != 2 or x.layout is not torch.strided:
        return None
    if x.requires_grad or x.is_neg():
        return None
    if w._operand.transposed != flip and not w._frozen:
        return None  # its lists are made anew in each call
    if x.device != w._place.device or w._batch:
        return None
    return (
        flip,
        w._operand.transposed,
        x.dtype,
        x.shape,
        x.stride(),
        torch.get_float32_matmul_precision(),
        epoch(),
    )


def again(w: BSR, x: Any, flip: bool) -> Any:
    """Return ``w @ x`` (``x @ w`` with ``flip``) by a launch that is known; None where there is none."""
    if not w._plans or TRACING.get() is not None:
        return None
    key = _key(w, x, flip)
    plan = None if key is None else w._plans.get(key)
    if plan is None:
        return None
    out = empty(plan.shape, plan.dtype, w._place)
    arguments = list(plan.launch.arguments)
    for at in plan.operand:
        arguments[at] = x
    for at in plan.result:
        arguments[at] = out
    launch(w._place, plan.launch.kernel, plan.launch.grid, *arguments, **plan.launch.options)
    return out


def multiply(w: BSR, x: Any, flip: bool) -> Any:
    """Return ``w @ x`` (``x @ w`` with ``flip``), and remember what it launched."""
    from prunus.cuda.layers.matmul import matmul

    pair = (x, w) if flip else (w, x)
    key = None if RECORDER.get() is not None or TRACING.get() is not None else _key(w, x, flip)
    if key is None:
        return matmul(*pair)
    with watched() as seen:
        out = matmul(*pair)
    plan = _plan(w, x, out, seen)
    if plan is not None:
        if len(w._plans) >= _MOST:
            w._plans.clear()
        w._plans[key] = plan
    return out


def _plan(w: BSR, x: Any, out: Any, seen: list[Launch]) -> Plan | None:
    """Return the one launch of a product with gaps in place of operand and result."""
    torch = libraries().torch
    if len(seen) != 1:
        return None
    places = {"x": x.data_ptr(), "out": out.data_ptr()}
    own = {part.data_ptr() for part in w._operand[:3]}
    if 0 in places.values() or own & set(places.values()) or places["x"] == places["out"]:
        return None
    found: dict[str, list[int]] = {"x": [], "out": []}
    arguments = list(seen[0].arguments)
    for at, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            for name, pointer in places.items():
                if argument.data_ptr() == pointer:
                    found[name].append(at)
                    arguments[at] = None
        elif not isinstance(argument, (int, float)):
            return None  # a description of a tensor: made for this one
    if not found["x"] or not found["out"]:
        return None
    kept = seen[0]._replace(arguments=tuple(arguments))
    return Plan(kept, tuple(found["x"]), tuple(found["out"]), tuple(out.shape), out.dtype)
