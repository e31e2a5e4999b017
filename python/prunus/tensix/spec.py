"""Chips as data: tables of figures, each with its source beside it in the shipped files."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from prunus import _core
from prunus.tensix.errors import SpecError

__all__ = ["ChipSpec", "Table"]


class Table(Mapping[str, Any]):
    """One table of a chip's description: its figures are keys and attributes."""

    __slots__ = ("_name", "_values")

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, key: str) -> Any:
        # A list of a description must not change behind it.
        return copy.deepcopy(self._values[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{self._name} has no {name!r}: there are {', '.join(self)}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a chip's description does not change: use replace({self._name}=...)")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{key}={value!r}' for key, value in self._values.items())})"


def _written(value: object) -> str:
    """Return a figure as TOML, of which JSON's scalars and lists are a part."""
    return json.dumps(value, ensure_ascii=False)


def _text(tables: Mapping[str, Any]) -> str:
    """Return a description as TOML."""
    plain = [f"{key} = {_written(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            plain.append(f"\n[{name}]")
            plain.extend(f"{key} = {_written(value)}" for key, value in table.items())
    return "\n".join(plain) + "\n"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables with the figures of other, partial ones in place of their own."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        own = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = {**(own if isinstance(own, dict) else {}), **value}
        else:
            merged[key] = value
    return merged


class ChipSpec:
    """Everything that the simulator knows about a chip.

    Tables are attributes: ``spec.noc.hop_cycles``, ``spec.l1.bytes``. Cycles are of the chip's clock, rates
    are per cycle. A description does not change; :meth:`replace` makes another one.

    Parameters
    ----------
    tables : mapping
        All tables and plain figures, as in the files of the chips that come with the package.

    Raises
    ------
    SpecError
        If something is missing or unknown, or if figures contradict each other.

    Examples
    --------
    >>> from prunus.tensix import ChipSpec
    >>> spec = ChipSpec.named("n150")
    >>> spec.noc.flit_bytes, spec.workers.compute_grid
    (32, [8, 8])
    >>> spec.replace(name="wider", noc={"flit_bytes": 64}).noc.flit_bytes
    64
    """

    __slots__ = ("_tables", "_text")

    _tables: dict[str, Any]
    _text: str

    def __init__(self, tables: Mapping[str, Any]) -> None:
        own = copy.deepcopy({k: dict(v) if isinstance(v, Mapping) else v for k, v in tables.items()})
        try:
            text = _text(own)
        except TypeError as error:
            raise SpecError(f"a chip's figures are numbers, texts and lists: {error}") from None
        _core.check_chip(text)
        object.__setattr__(self, "_tables", own)
        object.__setattr__(self, "_text", text)

    @staticmethod
    def names() -> list[str]:
        """Return the names of the chips that come with the package."""
        return _core.chip_names()

    @classmethod
    def named(cls, name: str) -> ChipSpec:
        """Return a chip that comes with the package.

        Parameters
        ----------
        name : str
            One of :meth:`names`.

        Raises
        ------
        SpecError
            If there is none of that name; the message lists those there are.
        """
        return cls(tomllib.loads(_core.chip_text(name)))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ChipSpec:
        """Return the chip that a TOML file describes.

        Parameters
        ----------
        path : path
            The file. With ``extends = "p150"`` it has only what differs from that chip.

        Raises
        ------
        SpecError
            If the file is no TOML, or what it says is no chip.
        OSError
            If it cannot be read.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: {error}") from None
        base = tables.pop("extends", None)
        try:
            if base is None:
                return cls(tables)
            if not isinstance(base, str):
                raise SpecError(f"extends is a chip's name, got {base!r}")
            return cls(_merged(cls.named(base)._tables, tables))
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None

    def replace(self, **changes: Any) -> ChipSpec:
        """Return the chip with other figures.

        Parameters
        ----------
        **changes
            Plain figures by name, and tables as mappings of the figures that change.

        Raises
        ------
        SpecError
            If there are no such figures, or they contradict each other.
        """
        return type(self)(_merged(self._tables, changes))

    @property
    def text(self) -> str:
        """The description as TOML."""
        return self._text

    def __getattr__(self, name: str) -> Any:
        if name in ChipSpec.__slots__:  # not made yet: copy and pickle ask
            raise AttributeError(name)
        try:
            value = self._tables[name]
        except KeyError:
            known = ", ".join(self._tables)
            raise AttributeError(
                f"chip {self._tables['name']!r} has no {name!r}: there are {known}"
            ) from None
        return Table(name, value) if isinstance(value, dict) else copy.deepcopy(value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a chip's description does not change: use replace()")

    def __reduce__(self) -> tuple[type[ChipSpec], tuple[dict[str, Any]]]:
        return type(self), (self._tables,)

    def __eq__(self, other: object) -> bool:
        return self._tables == other._tables if isinstance(other, ChipSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._tables]

    def __repr__(self) -> str:
        across, down = len(self._tables["workers"]["x"]), len(self._tables["workers"]["y"])
        return (
            f"<ChipSpec {self._tables['name']!r}: {across} x {down} cores at {self._tables['clock_ghz']} GHz>"
        )
