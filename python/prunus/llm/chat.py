"""Conversations as text: the model's own template, rendered as ``transformers`` renders it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from prunus._errors import PrunusError
from prunus.llm.checkpoint import Speech

__all__ = ["Message", "as_messages", "render"]

Message = Mapping[str, str]
_HINT: Final = "pip install 'prunus[demo]' (in a clone: pip install '.[demo]')"


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return a conversation: a text is what the user says first."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def render(speech: Speech, messages: Sequence[Message]) -> str:
    """Return a conversation as the model was taught to read it, up to where its answer begins.

    Raises
    ------
    PrunusError
        If the model has no template, the template refuses the conversation or fails, or the package Jinja2 is
        missing.
    """
    if not speech.chat_template:
        raise PrunusError("the model has no chat template: give the prompt as plain text (chat=False, --raw)")
    try:
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise PrunusError(f"chat templates are read with the package {error.name}: {_HINT}") from error

    def parse(_: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    # What a model said is marked in some templates, for training: the marks are left out.
    marks: Any = type("Generation", (Extension,), {"tags": {"generation"}, "parse": parse})

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # A template comes with a model from anywhere: it runs in a sandbox.
    around = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", marks]
    )
    around.filters["tojson"] = tojson
    around.globals["raise_exception"] = refuse
    around.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    try:
        text: str = around.from_string(speech.chat_template).render(
            messages=list(messages),
            add_generation_prompt=True,
            tools=None,  # templates ask whether they are None, which what is missing is not
            documents=None,
            bos_token=speech.bos,
            eos_token=speech.eos,
        )
        return text
    except TemplateError as error:
        raise PrunusError(f"the model's chat template refuses the conversation: {error}") from error
    except Exception as error:  # a template is a program: it fails with whatever it does wrong
        raise PrunusError(f"the model's chat template fails: {type(error).__name__}: {error}") from error
