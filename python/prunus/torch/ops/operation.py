"""How operations are registered with torch, so that transforms of ``torch.func`` take them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Operation", "operation"]


class Operation:
    """An operation of ``torch.library.custom_op`` that nothing writes to.

    Torch registers its gradient in a form that ``torch.func.grad`` and its relatives refuse. Under them calls
    go through a ``torch.autograd.Function`` of the same rules, whose products are calls of the same kind.

    Parameters
    ----------
    op : CustomOpDef
        What torch made of it.

    Attributes
    ----------
    op : CustomOpDef
        That.
    """

    def __init__(self, op: Any) -> None:
        self.op = op
        self.__name__ = self.__qualname__ = op._name
        self._defaults = [argument.default_value for argument in op._opoverload._schema.arguments]
        # Operations that take lists have no such form: transforms do not look into lists.
        self._lists = "[]" in str(op._opoverload._schema)
        self._function = _function(op, _no_gradient, _mark)

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active() or self._lists:
            return self.op(*args)
        return self._function.apply(*args, *self._defaults[len(args) :])

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Say what shapes come out; see ``torch.library.register_fake``."""
        self.op.register_fake(fake)
        return fake

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """Give it a gradient; see ``torch.library.register_autograd``."""
        self.op.register_autograd(backward, setup_context=setup_context)
        self._function = _function(self.op, backward, setup_context or _save_nothing)

    def register_vmap(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Give it a rule for batches; see ``torch.library.register_vmap``."""
        self.op.register_vmap(rule)
        self._function.vmap = staticmethod(rule)
        return rule


def operation(name: str, schema: str) -> Callable[[Callable[..., Any]], Operation]:
    """Register a function as an operation of torch, as ``torch.library.custom_op`` does.

    Parameters
    ----------
    name : str
        With its namespace, "prunus::dsd".
    schema : str
        Arguments and results as torch writes them, none of which is written to.
    """

    def made(function: Callable[..., Any]) -> Operation:
        return Operation(torch.library.custom_op(name, function, mutates_args=(), schema=schema))

    return made


def _function(op: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> Any:
    rules = {
        "forward": staticmethod(op.__call__),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(_one_by_one(op)),
    }
    return type(op._name, (torch.autograd.Function,), rules)


def _one_by_one(op: Any) -> Callable[..., Any]:
    """Return vmap's rule of an operation that has none of its own: a call for each member."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def member(i: int) -> tuple[Any, ...]:
            pairs = zip(args, in_dims, strict=True)
            return tuple(one if dim is None else one.select(dim, i) for one, dim in pairs)

        made = [op(*member(i)) for i in range(info.batch_size)]
        if isinstance(made[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*made, strict=True)), (0,) * len(made[0])
        return torch.stack(made), 0

    return rule


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _mark(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(ctx: Any, *grads: Any) -> None:
    raise AssertionError("nothing flows back from what is not differentiable")
