"""``sparsify_``: the linear layers of a model that exists become block-sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from prunus import _layout as lay
from prunus._construct import as_fraction
from prunus._table import format_table
from prunus.torch.learning.schedules import erdos_renyi
from prunus.torch.nn.linear import BlockSparseLinear

__all__ = ["Entry", "Report", "sparsify_"]

Skip: TypeAlias = "str | type | Callable[[str, torch.nn.Module], bool]"
Density: TypeAlias = "float | Mapping[str, float | None] | Callable[[str, torch.nn.Module], float | None]"

_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Entry(NamedTuple):
    """What became of one linear layer.

    Attributes
    ----------
    name : str
        Its path in the model.
    shape : tuple of int
        (out_features, in_features).
    done : bool
        Whether it is block-sparse now.
    what : str
        The blocks it has, or why it was left.
    density : float
        The share of blocks that it has; 1 where it was left.
    before, after : int
        Its parameters, biases included.
    """

    name: str
    shape: tuple[int, ...]
    done: bool
    what: str
    density: float
    before: int
    after: int


class Report(list[Entry]):
    """What :func:`sparsify_` did, an :class:`Entry` for each linear layer; ``print(report)`` is a table."""

    @property
    def before(self) -> int:
        """Parameters of all linear layers before."""
        return sum(one.before for one in self)

    @property
    def after(self) -> int:
        """Parameters of all linear layers now."""
        return sum(one.after for one in self)

    def __str__(self) -> str:
        rows = [
            [one.name, " x ".join(map(str, one.shape)), one.what, f"{one.before:,}", f"{one.after:,}"]
            for one in self
        ]
        rows.append(["all", "", f"{sum(one.done for one in self)} of {len(self)} layers", f"{self.before:,}",
                     f"{self.after:,}"])  # fmt: skip
        return format_table(["layer", "out x in", "what was done", "before", "after"], rows, left=3)


def sparsify_(
    model: torch.nn.Module,
    density: Density = 0.1,
    blocksize: int | tuple[int, int] = 32,
    *,
    skip: Skip | Iterable[Skip] = (),
    distribution: str = "uniform",
) -> Report:
    """Replace the ``torch.nn.Linear`` of a model by :class:`BlockSparseLinear`, in place.

    Each keeps its blocks of the largest norm. Make optimisers afterwards: parameters are new ones.

    Parameters
    ----------
    model : Module
        The model. It cannot be a linear layer itself: ``BlockSparseLinear.from_linear`` makes a new one.
    density : float, mapping or callable
        The share of blocks that stay; by name or ``fnmatch`` pattern, the first that matches; or what a
        function of (name, module) says. Layers without one, or with None, are left.
    blocksize : int or tuple of int
        Rows (outputs) and columns (inputs) of a block. Layers that are smaller are left.
    skip : str, type, callable, or several of them
        What to leave: names or ``fnmatch`` patterns of layers or modules that contain them, types of those,
        or functions of (name, module).
    distribution : {"uniform", "erdos_renyi"}
        Whether each layer gets the density, or all together, small ones denser: see
        :func:`prunus.torch.learning.erdos_renyi`. The latter takes one number as density.

    Returns
    -------
    Report
        What was done with each linear layer, and why not. Left are, besides those that are skipped: weights
        that several modules share, such as tied embeddings; the layers of ``MultiheadAttention``, which reads
        their weights itself; subclasses of ``Linear``, parametrised ones among them, and layers with hooks,
        whose meaning would be lost; layers without values, on the meta device.

    Raises
    ------
    ValueError
        If the model is a linear layer, a name in ``skip`` or ``density`` matches nothing, or numbers are out
        of range. Nothing was changed then.
    TypeError
        If an argument is none of these.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    >>> print(pt.sparsify_(model, density=0.25, blocksize=16))
    layer  out x in  what was done               before  after
    -----  --------  --------------------------  ------  -----
    0      256 x 64  16 of 64 blocks of 16 x 16  16,640  4,352
    2      10 x 256  left: smaller than 16 x 16   2,570  2,570
    all              1 of 2 layers               19,210  6,922
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.nn.Linear):
        raise ValueError("the model is a linear layer: BlockSparseLinear.from_linear(model) makes a new one")
    block = lay.as_blocksize(blocksize)
    if distribution not in ("uniform", "erdos_renyi"):
        raise ValueError(f"distribution must be 'uniform' or 'erdos_renyi', got {distribution!r}")
    named = dict(model.named_modules())
    linears = {name: one for name, one in named.items() if isinstance(one, torch.nn.Linear)}
    skipping = _Skipping(skip, named)
    share = _densities(density, linears)
    holders = _holders(model)
    plan: dict[str, str | float] = {}
    for name, linear in linears.items():
        left = skipping.why(name) or _why_left(name, linear, named, holders, block)
        wanted = None if left else share(name, linear)
        plan[name] = left or ("no density for it" if wanted is None else as_fraction(wanted, "density"))
    if distribution == "erdos_renyi":
        if not isinstance(density, (int, float)):
            raise TypeError("erdos_renyi distributes one number over all layers")
        chosen = [name for name, what in plan.items() if not isinstance(what, str)]
        sizes = [(linears[name].out_features, linears[name].in_features) for name in chosen]
        plan.update(zip(chosen, erdos_renyi(sizes, density), strict=True))
    report = Report()
    for name, what in plan.items():
        report.append(_swap(model, name, linears[name], what, block))
    return report


def _swap(
    model: torch.nn.Module, name: str, linear: torch.nn.Linear, what: str | float, block: tuple[int, int]
) -> Entry:
    """Replace one layer wherever the model has it, and tell."""
    before = sum(one.numel() for one in linear.parameters() if not _lazy(one))
    shape = int(linear.out_features), int(linear.in_features)
    if isinstance(what, str):
        return Entry(name, shape, False, f"left: {what}", 1.0, before, before)
    made = BlockSparseLinear.from_linear(linear, block, what)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is linear:
                parent._modules[key] = made
    after = sum(one.numel() for one in made.parameters())
    done = f"{made.nnzb} of {math.prod(made.grid)} blocks of {block[0]} x {block[1]}"
    return Entry(name, shape, True, done, made.density, before, after)


class _Skipping:
    """Says which layers were asked to be left."""

    def __init__(self, skip: Skip | Iterable[Skip], named: Mapping[str, torch.nn.Module]) -> None:
        several = skip if isinstance(skip, Iterable) and not isinstance(skip, (str, type)) else (skip,)
        self._rules = list(several)
        self._named = named
        for rule in self._rules:
            if isinstance(rule, str):
                _require_match(rule, "skip", named)
            elif not callable(rule):
                raise TypeError(f"skip takes names, types and functions, got {rule!r}")

    def why(self, name: str) -> str | None:
        """Say which rule a layer, or a module that contains it, falls under."""
        parts = name.split(".")
        paths = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        for rule in self._rules:
            if isinstance(rule, str):
                if any(fnmatchcase(path, rule) for path in paths):
                    return f"skip {rule!r}"
            elif isinstance(rule, type):
                if any(isinstance(self._named.get(path), rule) for path in [*paths, ""]):
                    return f"skip {rule.__name__}"
            elif rule(name, self._named[name]):
                return f"skip {getattr(rule, '__name__', 'function')}"
        return None


def _densities(
    density: Density, linears: Mapping[str, torch.nn.Linear]
) -> Callable[[str, torch.nn.Linear], float | None]:
    if isinstance(density, Mapping):
        rules = dict(density)
        for rule, wanted in rules.items():
            if not isinstance(rule, str):
                raise TypeError(f"density takes names of layers or patterns of them, got {rule!r}")
            _require_match(rule, "density", linears)
            if wanted is not None:
                as_fraction(wanted, f"density[{rule!r}]")

        def found(name: str, linear: torch.nn.Linear) -> float | None:
            return next((wanted for rule, wanted in rules.items() if fnmatchcase(name, rule)), None)

        return found
    if callable(density):
        return density
    share = as_fraction(density, "density")
    return lambda name, linear: share


def _require_match(rule: str, what: str, named: Iterable[str]) -> None:
    names = list(named)
    if not any(fnmatchcase(name, rule) for name in names):
        raise ValueError(f"{what}: {rule!r} matches nothing; there are {', '.join(filter(None, names))}")


def _why_left(
    name: str,
    linear: torch.nn.Linear,
    named: Mapping[str, torch.nn.Module],
    holders: Mapping[int, list[str]],
    block: tuple[int, int],
) -> str | None:
    """Say why a layer cannot be replaced, or nothing."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        if isinstance(named.get(".".join(parts[:end])), torch.nn.MultiheadAttention):
            return "MultiheadAttention reads its weights"
    if type(linear) is not torch.nn.Linear:
        return f"a {type(linear).__name__}, not known"
    if any(getattr(linear, kind) for kind in _HOOKS):
        return "has hooks"
    for part in (linear.weight, linear.bias):
        others = [one for one in holders.get(id(part), []) if one.rpartition(".")[0] != name]
        if part is not None and others:
            return f"shared with {others[0]}"
    if linear.weight.is_meta:
        return "has no values, on the meta device"
    if linear.weight.dtype not in _FLOATS:
        return f"holds {linear.weight.dtype}".replace("torch.", "")
    if linear.out_features < block[0] or linear.in_features < block[1]:
        return f"smaller than {block[0]} x {block[1]}"
    return None


_HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def _holders(model: torch.nn.Module) -> dict[int, list[str]]:
    """Return under which names of different modules each parameter is."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{name}.{key}".lstrip("."))
    return found


def _lazy(parameter: Any) -> bool:
    return isinstance(parameter, torch.nn.parameter.UninitializedParameter)
