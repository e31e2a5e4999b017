"""What is timed, each in a process of its own that does nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from prunus.bench.llm import mapped, peers

__all__ = ["TASKS", "generate"]

Arguments = Mapping[str, Any]
Told = Callable[[int], object]


def generate(arguments: Arguments, told: Told = lambda count: None) -> dict[str, Any]:
    """Answer a prompt.

    Parameters
    ----------
    arguments : mapping
        ``model``, a packed one; ``prompt``; ``tokens``; ``budget`` in bytes, without which all is in memory;
        ``map``, the advice by which a memory map is read instead; ``calibration`` and ``keep``; ``chat``;
        ``endless``: no token ends the text.
    told : callable
        Told of each token.

    Returns
    -------
    dict
        The text, what :class:`prunus.llm.Usage` has of it, bytes of a token's weights, and the peak of
        resident memory: ``peak`` above the interpreter with its imports, ``base`` of these.
    """
    # Imports come first: they are no memory of the model's.
    import tokenizers  # noqa: F401

    from prunus.llm import Calibration, load
    from prunus.llm.report import Memory

    calibration = arguments.get("calibration")
    if arguments.get("chat", True):
        import jinja2.sandbox  # noqa: F401
    memory = Memory()
    by_map = arguments.get("map")
    if by_map is not None:
        model = mapped.load(arguments["model"], by_map)
    else:
        model = load(arguments["model"], arguments.get("budget"))
    with model:
        if arguments.get("endless"):
            model.speech = replace(model.speech, stops=())
        made = model.stream(
            [arguments["prompt"]],
            arguments["tokens"],
            chat=arguments.get("chat", True),
            prune=None if calibration is None else Calibration.load(calibration),
            keep=arguments.get("keep"),
        )
        for _ in made:
            told(1)
        usage = made.usage
        return {
            "text": made.completions[0].text,
            "tokens": usage.tokens,
            "prompt_seconds": usage.prompt_seconds,
            "seconds": usage.seconds,
            "steps": usage.steps,
            "bytes_io": usage.bytes_io,
            "hits": usage.hits,
            "misses": usage.misses,
            "live": usage.live_fraction,
            "nbytes": int(model.weights.nbytes),
            "peak": memory.peak,
            "base": memory.start,
        }


TASKS: dict[str, Callable[[Arguments, Told], dict[str, Any]]] = {
    "generate": generate,
    "llama.cpp": peers.llama_cpp,
    "transformers": peers.transformers,
}
