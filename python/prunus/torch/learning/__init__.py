"""Patterns that learn: blocks that matter least go, and others come in their place."""

from __future__ import annotations

from prunus.torch.learning.averaging import AveragedModel
from prunus.torch.learning.magnitude import GradualMagnitude
from prunus.torch.learning.patterns import Change, set_pattern
from prunus.torch.learning.rigl import SET, RigL
from prunus.torch.learning.schedules import cosine, cubic, erdos_renyi

__all__ = [
    "SET",
    "AveragedModel",
    "Change",
    "GradualMagnitude",
    "RigL",
    "cosine",
    "cubic",
    "erdos_renyi",
    "set_pattern",
]
