"""What a prompt may be: a text, a conversation or tokens, or several of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Final

import numpy as np

from prunus._dtypes import Array
from prunus.llm.chat import Message, as_messages, render
from prunus.llm.checkpoint import Speech

__all__ = ["Prompt", "as_prompts", "check_prompts", "render_prompt"]

Prompt = str | Sequence[Message] | Sequence[int] | Array
_EXPECTED: Final = (
    'expected a prompt: a text, a list of messages with "role" and "content", or tokens (with chat=False)'
)


def as_prompts(prompt: Any) -> tuple[list[Any], bool]:
    """Return a prompt, or several, as a list; and whether they came as one.

    Raises
    ------
    TypeError, ValueError
        If it is neither.
    """
    if isinstance(prompt, str):
        return [prompt], False
    every = _listed(prompt)
    if every is None:
        raise TypeError(f"{_EXPECTED}, or a list of prompts; got {type(prompt).__name__}")
    if not every:
        raise ValueError(f"{_EXPECTED}, or a list of at least one prompt; got nothing")
    # Lists of messages and of tokens are one prompt; anything else that is listed is a prompt of its own.
    many = isinstance(every[0], str) or _listed(every[0]) is not None
    return (every, True) if many else ([prompt], False)


def check_prompts(prompts: Any, chat: bool) -> list[Any]:
    """Return prompts as a list, whose tokens are arrays, int64.

    Raises
    ------
    TypeError, ValueError
        If one is no prompt, or ``chat`` does not go with it.
    """
    every = None if isinstance(prompts, str) else _listed(prompts)
    if every is None:
        raise TypeError(f"expected a list of prompts, got {type(prompts).__name__}")
    if not every:
        raise ValueError("expected at least one prompt, got none")
    return [_checked(one, f"prompt {number}", chat) for number, one in enumerate(every)]


def render_prompt(speech: Speech, prompt: Any, chat: bool) -> str | None:
    """Return a checked prompt in the model's chat template; None if it is continued as it is.

    Raises
    ------
    PrunusError
        As :func:`prunus.llm.chat.render`: a conversation is nothing without a template.
    """
    if isinstance(prompt, np.ndarray) or not chat:
        return None
    if isinstance(prompt, str) and not speech.chat_template:
        return None
    return render(speech, as_messages(prompt))


def _listed(value: Any) -> list[Any] | None:
    """Return what a list holds, None if it is none: bytes and texts are not lists here."""
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else None
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return list(value)
    return None


def _checked(prompt: Any, name: str, chat: bool) -> Any:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"{name}: {_EXPECTED}; got nothing: an empty text")
        return prompt
    every = _listed(prompt)
    if every is None:
        raise TypeError(f"{name}: {_EXPECTED}; got {type(prompt).__name__}")
    if not every:
        raise ValueError(f"{name}: {_EXPECTED}; got nothing")
    if all(isinstance(one, Integral) and not isinstance(one, bool) for one in every):
        if chat:
            raise TypeError(f"{name} is a list of tokens, which go into no chat template: pass chat=False")
        try:
            return np.array(every, np.int64)
        except OverflowError:
            raise ValueError(f"{name}: a token is beyond 64 bits: {max(every, key=abs)}") from None
    if not all(isinstance(one, Mapping) for one in every):
        kinds = ", ".join(sorted({type(one).__name__ for one in every}))
        raise TypeError(f"{name}: {_EXPECTED}; got a list of {kinds}")
    for at, message in enumerate(every):
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f"{name}: message {at} has no {key!r}")
            if not isinstance(message[key], str):
                raise TypeError(
                    f"{name}: {key!r} of message {at} must be a str, got {type(message[key]).__name__}"
                )
    if not any(message["content"] for message in every):
        raise ValueError(f"{name}: expected a conversation that says something, got empty texts only")
    if not chat:
        raise TypeError(
            f"{name} is a conversation, which is read by a chat template: pass chat=True, or a text"
        )
    return every
