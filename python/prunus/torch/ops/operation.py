"""How operations are registered with torch, so that transforms of ``torch.func`` take them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)
from torch.utils._pytree import tree_leaves

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
        op.register_vmap(self._one_by_one)
        self._function = self._rules(_no_gradient, _mark)

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
            return self.op(*args)
        transform = peek_interpreter_stack().key()
        # Functions have no rule for functionalisation, of which an operation needs none.
        if transform == TransformType.Functionalize:
            return self.op(*args)
        if not self._lists:
            return self._function.apply(*args, *self._defaults[len(args) :])
        given = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
        batched = transform == TransformType.Vmap and any(map(is_batchedtensor, given))
        if any(map(is_functorch_wrapped_tensor, given)) and not batched:
            raise NotImplementedError(
                f"{self.__name__} takes a list of matrices, which torch.func does not differentiate: stack "
                "them to one tensor"
            )
        return self.op(*args)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Say what shapes come out; see ``torch.library.register_fake``."""
        self.op.register_fake(fake)
        return fake

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """Give it a gradient; see ``torch.library.register_autograd``."""
        self.op.register_autograd(backward, setup_context=setup_context)
        self._function = self._rules(backward, setup_context or _save_nothing)

    def register_vmap(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Give it a rule for batches; see ``torch.library.register_vmap``."""
        self.op.register_vmap(rule)
        self._function.vmap = staticmethod(rule)
        return rule

    def _rules(self, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> Any:
        """Return a function of the same rules."""
        rules = {
            "forward": staticmethod(self.op.__call__),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(_no_tangent),
            "vmap": staticmethod(self.op._vmap_fn),
        }
        return type(self.__name__, (torch.autograd.Function,), rules)

    def _one_by_one(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Compute a batch where there is no other rule: a call for each member."""

        def member(one: Any, dim: Any, i: int) -> Any:
            if isinstance(one, (list, tuple)):
                return [member(*pair, i) for pair in zip(one, dim, strict=True)]
            return one if dim is None else one.select(dim, i)

        every = [
            self(*(member(*pair, i) for pair in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if not every:
            raise ValueError(f"{self.__name__} takes vmap of one member at least")
        if isinstance(every[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*every, strict=True)), (0,) * len(every[0])
        return torch.stack(every), 0


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


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _mark(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(ctx: Any, *grads: Any) -> None:
    raise AssertionError("nothing flows back from what is not differentiable")


def _no_tangent(ctx: Any, *tangents: Any) -> None:
    raise NotImplementedError(
        "forward-mode differentiation (torch.func.jvp, jacfwd, hessian) is not there; jacrev of jacrev gives "
        "second derivatives"
    )
