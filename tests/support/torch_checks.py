"""What torch checks of operations, where warnings are errors."""

import warnings

from torch.autograd import gradgradcheck as torch_gradgradcheck
from torch.library import opcheck as torch_opcheck

__all__ = ["gradgradcheck", "opcheck"]


def gradgradcheck(call, inputs, **kwargs):
    """Check gradients of gradients along random directions: all of them would take many seconds."""
    return torch_gradgradcheck(call, inputs, **{"fast_mode": True} | kwargs)


def opcheck(op, args, **kwargs):
    """Check an operation by ``torch.library.opcheck``, whose own steps read a gradient that is not there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        return torch_opcheck(op.op if hasattr(op, "register_fake") else op, args, **kwargs)
