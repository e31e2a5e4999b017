"""Parts of an expression that compiled code computes in one go, instead of NumPy call by call.

The compiled evaluator gives NumPy's bits, so what it takes follows from functions and dtypes alone:
arithmetic, comparisons, logic, rounding, ``where`` and casts of the dtypes in ``KINDS``. Everything else
stays with NumPy, tile by tile: functions such as ``exp`` whose bits are an implementation's own, integer
division, complex numbers, other byte orders, and what is smaller than the result. Where NumPy would warn or
raise, the steps of a tile are repeated with NumPy, so that warnings and exceptions are its own.

Two things are not NumPy's. With bfloat16, which ml_dtypes adds to NumPy, values are the same, but some
warnings are missing that ml_dtypes lets through: "invalid value encountered in less" where NaN is compared,
and "overflow encountered in cast" where a number beyond float32 meets an array of bfloat16. And a NaN is a
NaN, but its sign and payload may differ: they are the processor's and the order of operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from prunus import _core
from prunus._dtypes import BFLOAT16, HALVES, Array, DType
from prunus.paged.graph import Call, Cast, Const, Node

__all__ = ["KINDS", "Part", "Step", "arrange", "casts", "mask_of"]

KINDS: Final = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
    ]
)
_BOOL: Final = np.dtype(np.bool_)
_DEFER: Final = 16
_FLAGS: Final = {"invalid": 1, "divide": 2, "over": 4, "under": 8}
_LEGACY: Final = int(np.__version__.split(".")[0]) < 2  # promotion looks at the values of scalars

_COMPARE: Final = frozenset(["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
_FLOATS: Final = frozenset(
    [
        "divide",
        "fmax",
        "fmin",
        "sqrt",
        "reciprocal",
        "floor",
        "ceil",
        "trunc",
        "rint",
        "isnan",
        "isinf",
        "isfinite",
    ]
)
_BITS: Final = frozenset(["bitwise_and", "bitwise_or", "bitwise_xor", "invert"])
_NUMBERS: Final = frozenset(
    ["add", "subtract", "multiply", "maximum", "minimum", "negative", "absolute", "square", "sign"]
)
_EXTREMES: Final = frozenset(["maximum", "minimum", "fmax", "fmin"])
_LOGICAL: Final = {
    "logical_and": "bitwise_and", "logical_or": "bitwise_or", "logical_xor": "bitwise_xor",
    "logical_not": "invert",
}  # fmt: skip
# What arithmetic is for booleans.
_OF_BOOL: Final = {
    "add": "bitwise_or", "multiply": "bitwise_and", "maximum": "bitwise_or", "minimum": "bitwise_and",
}  # fmt: skip
# Dtypes whose values are float32 too, so that a cast to a half rounds once.
_EXACT: Final = frozenset(np.dtype(d) for d in ("?", "i1", "u1", "i2", "u2", "f4"))


class Step(NamedTuple):
    """A call of a function: the slots of its result and of its arguments."""

    node: Node
    func: Callable[..., Any]
    to: int
    args: tuple[int, ...]
    kwargs: dict[str, Any]


class _Lowered(NamedTuple):
    """What a call is to the compiled evaluator: an operation, its dtype, and those of its operands."""

    name: str
    dtype: DType
    operands: tuple[DType, ...]


def _known(dtype: DType) -> bool:
    return dtype.isnative and dtype.name in KINDS


def casts(source: DType, to: DType) -> bool:
    """Say whether compiled code converts values between two dtypes."""
    if not (_known(source) and _known(to)):
        return False
    return source == to or to not in HALVES or source in _EXACT


def _operand(node: Node) -> Any:
    """Return what promotion sees of an operand: a dtype, or the type of a Python number."""
    if isinstance(node, Const) and not node.shape and type(node.value) in (int, float, complex):
        return type(node.value)
    return node.dtype


def _lower(node: Call) -> _Lowered | None:
    """Return what a call is to the compiled evaluator; None where NumPy has to do it."""
    found = _lower_call(node)
    if found is None or not _known(found.dtype):
        return None
    for arg, dtype in zip(node.args, found.operands, strict=True):
        if isinstance(arg, Const) and not arg.shape:
            if _scalar(arg.value, dtype) is None:
                return None
        elif not casts(arg.dtype, dtype):
            return None
    return found


def _lower_call(node: Call) -> _Lowered | None:
    func, args = node.func, node.args
    if isinstance(func, Cast):
        return _Lowered("cast", func.to, (args[0].dtype,)) if casts(args[0].dtype, func.to) else None
    if func is np.where and not node.kwargs:
        return _Lowered("where", node.dtype, (_BOOL, node.dtype, node.dtype))
    if not isinstance(func, np.ufunc) or node.kwargs or func.nout != 1:
        return None
    name = func.__name__
    if name in _LOGICAL:
        return _Lowered(_LOGICAL[name], _BOOL, (_BOOL,) * len(args))
    if _LEGACY and name in _COMPARE and any(isinstance(a, Const) and not a.shape for a in args):
        return None
    try:
        *loop, gives = func.resolve_dtypes((*(_operand(a) for a in args), None))
    except (TypeError, OverflowError):
        return None
    if gives != node.dtype or len(set(loop)) != 1:
        return None
    (dtype,) = set(loop)
    if name == "positive" and dtype != _BOOL:
        return _Lowered("cast", dtype, (dtype,))
    if dtype == _BOOL:
        name = _OF_BOOL.get(name, name)
        taken = name in _COMPARE or name in _BITS
    elif dtype.kind in "iu":
        taken = name in _COMPARE or name in _BITS or name in _NUMBERS
    else:
        # ml_dtypes' sign of a zero has the zero's sign. Of zeros with unlike signs, the loops over halves
        # take the first, those over float32 whichever.
        own = (name, dtype) == ("sign", BFLOAT16) or (name in _EXTREMES and dtype in HALVES)
        taken = name in _COMPARE or ((name in _FLOATS or name in _NUMBERS) and not own)
    return _Lowered(name, dtype, (dtype,) * len(args)) if taken else None


def _scalar(value: Any, dtype: DType) -> Array | None:
    """Return a number as NumPy's loop over ``dtype`` takes it; None where NumPy has something to say."""
    try:
        with np.errstate(all="raise"):
            if isinstance(value, (np.generic, np.ndarray)):
                return np.asarray(value).astype(dtype) if casts(value.dtype, dtype) else None
            return np.array(value, dtype)
    except (FloatingPointError, OverflowError, TypeError, ValueError):
        return None


def mask_of(settings: Mapping[str, object]) -> int:
    """Return the flags for which NumPy has to repeat the work, given what ``numpy.geterr`` says."""
    return _DEFER | sum(flag for name, flag in _FLAGS.items() if settings[name] != "ignore")


class Part:
    """Some steps that one compiled program computes, for a tile at a time.

    Parameters
    ----------
    steps : sequence of Step
        The steps, each after those that it takes results of.
    wanted : set of int
        Slots whose values others need.
    lowered : dict
        What each step is, by its slot.
    """

    def __init__(self, steps: Sequence[Step], wanted: set[int], lowered: dict[int, _Lowered]) -> None:
        self.steps = tuple(steps)
        self.outputs = [step.to for step in steps if step.to in wanted]
        self.dtypes = [step.node.dtype for step in steps if step.to in wanted]
        self._sources: list[int | Array] = []  # slots, and numbers
        kinds: list[str] = []
        inside = {step.to for step in steps}
        external: dict[Any, int] = {}  # inputs, by what they are

        def take(key: Any, source: int | Array, dtype: DType) -> int:
            if key not in external:
                external[key] = len(self._sources)
                self._sources.append(source)
                kinds.append(dtype.name)
            return external[key]

        # Values are counted with the inputs first, so those are found first.
        for step in steps:
            assert isinstance(step.node, Call)
            for arg, slot, dtype in zip(step.node.args, step.args, lowered[step.to].operands, strict=True):
                if isinstance(arg, Const) and not arg.shape:
                    number = _scalar(arg.value, dtype)
                    assert number is not None
                    take((slot, dtype), number, dtype)
                elif slot not in inside:
                    take(slot, slot, arg.dtype)
        program: list[tuple[str, str, list[int]]] = []
        values: dict[Any, int] = dict(external)

        def append(name: str, dtype: DType, args: list[int]) -> int:
            program.append((name, dtype.name, args))
            return len(kinds) + len(program) - 1

        for step in steps:
            assert isinstance(step.node, Call)
            name, to, operands = lowered[step.to]
            args = []
            for arg, slot, dtype in zip(step.node.args, step.args, operands, strict=True):
                if (slot, dtype) not in values:
                    same = arg.dtype == dtype
                    values[slot, dtype] = values[slot] if same else append("cast", dtype, [values[slot]])
                args.append(values[slot, dtype])
            values[step.to] = append(name, to, args)
        self._program = _core.Elementwise(kinds, program, [values[slot] for slot in self.outputs])

    def run(self, slots: list[Any], outs: Sequence[Array], mask: int) -> None:
        """Compute the values of a tile into ``outs``; where ``mask`` says so, have NumPy compute them."""
        given = [np.asarray(slots[s]) if isinstance(s, int) else s for s in self._sources]
        if self._program.run(given, outs) & mask:
            for step in self.steps:
                slots[step.to] = step.func(*[slots[a] for a in step.args], **step.kwargs)
        else:
            for slot, out in zip(self.outputs, outs, strict=True):
                slots[slot] = out


def arrange(steps: Sequence[Step], roots: Sequence[int], shape: tuple[int, ...]) -> list[Step | Part]:
    """Return steps in an order in which those that compiled code takes are together in few parts."""
    lowered: dict[int, _Lowered] = {}
    for step in steps:
        if isinstance(step.node, Call) and step.node.shape == shape:
            found = _lower(step.node)
            if found is not None:
                lowered[step.to] = found
    if not lowered or not _core.Elementwise.available():
        return list(steps)
    # A part of a stage takes what NumPy has computed in those before, and NumPy what the part has.
    stage: dict[int, int] = {}
    for step in steps:
        below = [stage[a] + (step.to in lowered and a not in lowered) for a in step.args if a in stage]
        stage[step.to] = max(below, default=0)
    wanted = set(roots)
    for step in steps:
        wanted.update(a for a in step.args if step.to not in lowered or stage.get(a, -1) != stage[step.to])
    found_parts: list[Step | Part] = []
    for number in range(max(stage.values()) + 1):
        now = [step for step in steps if stage[step.to] == number]
        ours = [step for step in now if step.to in lowered]
        if ours:
            found_parts.append(Part(ours, wanted, lowered))
        found_parts += [step for step in now if step.to not in lowered]
    return found_parts
