"""Generating text: the prompt first, then token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunus._dtypes import Array
from prunus.llm.ahead import Ahead
from prunus.llm.cache import Cache
from prunus.llm.chat import as_messages, render
from prunus.llm.forward import Part, forward, logits
from prunus.llm.pruning import Prune, Tally, policies
from prunus.llm.sampling import Sampler
from prunus.pruning._checks import check_count

if TYPE_CHECKING:
    from prunus.llm.model import Model

__all__ = ["Completion", "Generation", "Usage"]


@dataclass(slots=True)
class Usage:
    """What a generation took.

    Attributes
    ----------
    prompt_tokens, tokens : int
        Tokens of all prompts, and tokens that were generated.
    prompt_seconds, seconds : float
        Time for the prompts (with the first token of each), and for all tokens after that.
    steps : int
        Passes through the layers after the prompts; each gives one token to every text that goes on.
    bytes_io : int
        Bytes read from disk in these steps.
    hits, misses : int
        Pages that these steps found in memory, and did not.
    live_fraction : float
        Share of hidden units that took part, over all tokens.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    bytes_io: int = 0
    hits: int = 0
    misses: int = 0
    live_fraction: float = 1.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated after each text's first, over their time."""
        return self.tokens_after / self.seconds if self.seconds else 0.0

    tokens_after: int = 0

    @property
    def bytes_per_step(self) -> float:
        """Bytes read from disk for a pass through the layers."""
        return self.bytes_io / self.steps if self.steps else 0.0


@dataclass(slots=True)
class Completion:
    """One answer.

    Attributes
    ----------
    text : str
        What was generated.
    tokens : list of int
        As tokens; with the one that ends it, if it ended.
    prompt_tokens : int
        Tokens of the prompt, with those of the template.
    finished : bool
        Whether the model ended it.
    usage : Usage
        What the generation took that it was part of.
    """

    usage: Usage
    prompt_tokens: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def __str__(self) -> str:
        return self.text


class Generation:
    """Generates when iterated over: yields (number of the prompt, new piece of its text).

    Attributes
    ----------
    completions : list of Completion
        As far as they are.
    usage : Usage
        What it took so far.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Any],
        tokens: int,
        *,
        chat: bool,
        temperature: float,
        top_p: float,
        seed: int | None,
        prune: Prune | None,
        keep: float | None,
    ) -> None:
        self._model, self._most = model, check_count(tokens, "tokens")
        if not len(prompts):
            raise ValueError("expected at least one prompt, got none")
        self._tokens = [self._prompt(one, chat) for one in prompts]
        room = model.weights.config.max_position_embeddings
        for number, found in enumerate(self._tokens):
            if len(found) + self._most > room:
                raise ValueError(
                    f"prompt {number} has {len(found)} tokens, and {self._most} are to follow: the model's "
                    f"context has room for {room}"
                )
        # Each text draws from numbers of its own: what it says does not depend on its neighbours.
        seeds = np.random.SeedSequence(seed).spawn(len(prompts))
        self._samplers = [Sampler(temperature, top_p, int(one.generate_state(1)[0])) for one in seeds]
        self._tally = Tally()
        self._policies = policies(model.weights, prune, keep, self._tally)
        self.usage = Usage(prompt_tokens=sum(map(len, self._tokens)))
        self.completions = [Completion(self.usage, len(found)) for found in self._tokens]
        self._ahead = Ahead(model.weights, 1.0 if self._policies is None else keep or 1.0)
        self._steps = self._run()

    def _prompt(self, prompt: Any, chat: bool) -> Array:
        """Return a prompt's tokens."""
        model = self._model
        if chat and model.speech.chat_template:
            # A template says itself what a text begins with.
            text = render(model.speech, as_messages(prompt))
            return model.tokens(model.tokenizer.encode(text, special=False))
        if not isinstance(prompt, str):
            raise TypeError(
                "a conversation needs the model's chat template: pass chat=True to a model that has one"
            )
        return model.tokens(prompt)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self._steps

    def __next__(self) -> tuple[int, str]:
        return next(self._steps)

    def _run(self) -> Iterator[tuple[int, str]]:
        try:
            yield from self._generate()
        finally:
            self._ahead.stop()

    def _generate(self) -> Iterator[tuple[int, str]]:
        from prunus.llm.model import BATCH

        usage, config = self.usage, self._model.weights.config
        caches = [Cache(config, len(found) + self._most) for found in self._tokens]
        shown = [_Text(self._model, completion) for completion in self.completions]
        going: list[int] = []
        for number, found in enumerate(self._tokens):
            begin = time.perf_counter()
            x = np.empty((0, config.hidden_size), np.float32)
            for first in range(0, len(found), BATCH):
                x = self._forward([Part(caches[number], found[first : first + BATCH])])
            piece, ended = self._next(number, logits(self._model.weights, x[-1:])[0], shown[number])
            if not ended:
                going.append(number)
            usage.prompt_seconds += time.perf_counter() - begin
            yield number, piece
        stats = self._stats()
        while going:
            begin = time.perf_counter()
            last = [np.array([self.completions[number].tokens[-1]]) for number in going]
            parts = [Part(caches[number], token) for number, token in zip(going, last, strict=True)]
            rows = logits(self._model.weights, self._forward(parts))
            pieces = []
            for number, row in zip(list(going), rows, strict=True):
                piece, ended = self._next(number, row, shown[number])
                usage.tokens_after += 1
                if ended:
                    going.remove(number)
                pieces.append((number, piece))
            usage.seconds += time.perf_counter() - begin
            usage.steps += 1
            usage.live_fraction = self._tally.share
            now = self._stats()
            usage.bytes_io, usage.hits, usage.misses = (b - a for a, b in zip(stats, now, strict=True))
            yield from pieces
        usage.live_fraction = self._tally.share

    def _forward(self, parts: list[Part]) -> Array:
        return forward(self._model.weights, self._model.positions, parts, self._policies, ahead=self._ahead)

    def _next(self, number: int, row: Array, shown: _Text) -> tuple[str, bool]:
        """Pick a text's next token; return the new piece of text, and whether that was the last."""
        completion = self.completions[number]
        token = self._samplers[number].pick(row)
        completion.tokens.append(token)
        self.usage.tokens += 1
        completion.finished = token in self._model.speech.stops
        ended = completion.finished or len(completion.tokens) >= self._most
        return shown.piece(ended), ended

    def _stats(self) -> tuple[int, int, int]:
        pager = self._model.pager
        if pager is None:
            return 0, 0, 0
        found = pager.stats()
        return int(found["bytes_read"]), int(found["hits"]), int(found["misses"])


class _Text:
    """The text of tokens as it grows: pieces end with whole characters."""

    def __init__(self, model: Model, completion: Completion) -> None:
        self._tokenizer, self._completion = model.tokenizer, completion

    def piece(self, ended: bool) -> str:
        """Return what is new."""
        completion = self._completion
        # All tokens: those before the new ones decide on spaces between them.
        whole = self._tokenizer.decode(completion.tokens)
        if whole.endswith("\ufffd") and not ended:
            return ""
        # What was shown stays, also where bytes that are no character spoil those before them in `whole`.
        new = whole[len(completion.text) :]
        completion.text += new
        return new
