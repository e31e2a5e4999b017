"""The committed stub of the compiled module tells the truth."""

import ast
import inspect
from importlib.resources import files

import pytest

from prunus import _core

# The stub that was installed with the package: the one that type checkers read.
TREE = ast.parse(files("prunus").joinpath("_core.pyi").read_text(encoding="utf-8"))
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
CONSTANTS = {
    node.target.id
    for node in TREE.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}


def public(names):
    return {name for name in names if not name.startswith("_")}


def members(node):
    return public(item.name for item in node.body if isinstance(item, ast.FunctionDef))


def test_same_names():
    assert public(dir(_core)) == public({*FUNCTIONS, *CLASSES, *CONSTANTS})


def test_constants_exist():
    missing = [name for name in CONSTANTS if not hasattr(_core, name)]
    assert not missing


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_same_parameters(name):
    arguments = FUNCTIONS[name].args
    rest = [arguments.vararg] if arguments.vararg else []
    written = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *rest, *arguments.kwonlyargs]]
    assert list(inspect.signature(getattr(_core, name)).parameters) == written


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_same_members(name):
    assert public(dir(getattr(_core, name))) == members(CLASSES[name])
