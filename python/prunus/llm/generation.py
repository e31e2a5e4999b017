"""Generating text: the prompt first, then token by token."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from prunus._dtypes import Array
from prunus.llm.ahead import Ahead
from prunus.llm.cache import Cache
from prunus.llm.forward import Part, forward, logits
from prunus.llm.prompts import check_prompts, render_prompt
from prunus.llm.pruning import Prune, Tally, policies
from prunus.llm.sampling import Sampler, check_seed
from prunus.pruning._checks import check_count

if TYPE_CHECKING:
    from prunus.llm.model import Model

__all__ = ["Completion", "Generation", "Usage"]

# Tokens that are decoded again for each new one, usually at most; those that stay when the beginning moves.
_RUN: Final = 48
_BACK: Final = 12
_ROOM: Final = 256  # tokens of an answer that a cache has room for from the start


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

    What reads ahead is left when all is generated, by :meth:`close`, at the end of a ``with`` block, or when
    nobody holds the generation any more.

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
        most = check_count(tokens, "tokens")
        found = [_tokens(model, one, chat) for one in check_prompts(prompts, chat)]
        room = model.weights.config.max_position_embeddings
        for number, one in enumerate(found):
            if len(one) + most > room:
                raise ValueError(
                    f"prompt {number} has {len(one)} tokens, and {most} are to follow: the model's "
                    f"context has room for {room}"
                )
        # Each text draws from numbers of its own: what it says does not depend on its neighbours.
        seeds = np.random.SeedSequence(check_seed(seed)).spawn(len(found))
        samplers = [Sampler(temperature, top_p, int(one.generate_state(1)[0])) for one in seeds]
        tally = Tally()
        rules = policies(model.weights, prune, keep, tally)
        self.usage = Usage(prompt_tokens=sum(map(len, found)))
        self.completions = [Completion(self.usage, len(one)) for one in found]
        ahead = Ahead(model.weights, 1.0 if rules is None else keep or 1.0)
        # It does not know this object: without a cycle, what it began ends as soon as nobody holds this.
        run = _Run(model, found, most, samplers, tally, rules, self.usage, self.completions, ahead)
        self._steps = run.steps()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, str]:
        return next(self._steps)

    def close(self) -> None:
        """Generate no more, and leave what reads ahead; what was generated stays."""
        self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tokens(model: Model, prompt: Any, chat: bool) -> Array:
    """Return a checked prompt's tokens."""
    text = render_prompt(model.speech, prompt, chat)
    if text is None:
        return model.tokens(prompt)
    # A template says itself what a text begins with.
    return model.tokens(model.tokenizer.encode(text, special=False))


@dataclass(slots=True)
class _Run:
    """What a generation works with."""

    model: Model
    tokens: list[Array]
    most: int
    samplers: list[Sampler]
    tally: Tally
    policies: Sequence[Any] | None
    usage: Usage
    completions: list[Completion]
    ahead: Ahead

    def steps(self) -> Generator[tuple[int, str], None, None]:
        """Generate, and leave what was begun."""
        try:
            yield from self._generate()
        finally:
            self.ahead.stop()

    def _generate(self) -> Iterator[tuple[int, str]]:
        usage, config = self.usage, self.model.weights.config
        # Room for a short answer at once; of a long one it grows.
        caches = [Cache(config, len(found) + min(self.most, _ROOM)) for found in self.tokens]
        shown = [_Text(self.model, completion) for completion in self.completions]
        going: list[int] = []
        for batch in self._batches():
            begin = time.perf_counter()
            x = self._forward(
                [Part(caches[number], self.tokens[number][first:last]) for number, first, last in batch]
            )
            at, pieces = 0, []
            for number, first, last in batch:
                at += last - first
                if last < len(self.tokens[number]):
                    continue
                row = logits(self.model.weights, x[at - 1 : at])[0]
                piece, ended = self._next(number, row, shown[number])
                if not ended:
                    going.append(number)
                pieces.append((number, piece))
            usage.prompt_seconds += time.perf_counter() - begin
            yield from pieces
        stats = self._stats()
        while going:
            begin = time.perf_counter()
            latest = [np.array([self.completions[number].tokens[-1]]) for number in going]
            parts = [Part(caches[number], token) for number, token in zip(going, latest, strict=True)]
            rows = logits(self.model.weights, self._forward(parts))
            pieces = []
            for number, row in zip(list(going), rows, strict=True):
                piece, ended = self._next(number, row, shown[number])
                usage.tokens_after += 1
                if ended:
                    going.remove(number)
                pieces.append((number, piece))
            usage.seconds += time.perf_counter() - begin
            usage.steps += 1
            usage.live_fraction = self.tally.share
            now = self._stats()
            usage.bytes_io, usage.hits, usage.misses = (b - a for a, b in zip(stats, now, strict=True))
            yield from pieces
        usage.live_fraction = self.tally.share

    def _batches(self) -> list[list[tuple[int, int, int]]]:
        """Return which tokens of which prompts pass through the layers together: number, first, and last."""
        from prunus.llm.model import BATCH

        made: list[list[tuple[int, int, int]]] = []
        room = 0
        for number, found in enumerate(self.tokens):
            first = 0
            while first < len(found):
                if not room:
                    made.append([])
                    room = BATCH
                last = min(first + room, len(found))
                made[-1].append((number, first, last))
                room -= last - first
                first = last
        return made

    def _forward(self, parts: list[Part]) -> Array:
        return forward(self.model.weights, self.model.positions, parts, self.policies, ahead=self.ahead)

    def _next(self, number: int, row: Array, shown: _Text) -> tuple[str, bool]:
        """Pick a text's next token; return the new piece of text, and whether that was the last."""
        completion = self.completions[number]
        token = self.samplers[number].pick(row)
        completion.tokens.append(token)
        self.usage.tokens += 1
        completion.finished = token in self.model.speech.stops
        ended = completion.finished or len(completion.tokens) >= self.most
        return shown.piece(ended), ended

    def _stats(self) -> tuple[int, int, int]:
        pager = self.model.pager
        if pager is None:
            return 0, 0, 0
        found = pager.stats()
        return int(found["bytes_read"]), int(found["hits"]), int(found["misses"])


class _Text:
    """The text of tokens as it grows: pieces end with whole characters.

    What a token spells may depend on those before it: on whether there are any (SentencePiece leaves out the
    first space), and on whether bytes make a character. So tokens are decoded from some way back, and that
    place moves on only where the shorter run spells what the longer one ends with.
    """

    def __init__(self, model: Model, completion: Completion) -> None:
        self._tokenizer, self._completion = model.tokenizer, completion
        # Where decoding begins, and how much of what it gives was shown.
        self._first = self._shown = 0

    def piece(self, ended: bool) -> str:
        """Return what is new."""
        completion = self._completion
        # A stop token is no text, also where the vocabulary does not call it special.
        end = len(completion.tokens) - completion.finished
        whole = self._tokenizer.decode(completion.tokens[self._first : end])
        if whole.endswith("\ufffd") and not ended:
            return ""
        # What was shown stays, also where bytes that are no character spoil those before them in `whole`.
        new = whole[self._shown :]
        completion.text += new
        self._shown += len(new)
        if len(completion.tokens) - self._first >= _RUN:
            self._move(whole)
        return new

    def _move(self, whole: str) -> None:
        tokens = self._completion.tokens
        if len(whole) != self._shown:
            return
        for back in range(_BACK, _BACK + 4):  # one of them begins a character
            rest = self._tokenizer.decode(tokens[-back:])
            # A run that spells nothing, or spaces only, might be taken for the beginning of a text.
            if rest.strip(" ") and whole.endswith(rest):
                self._first, self._shown = len(tokens) - back, len(rest)
                return
