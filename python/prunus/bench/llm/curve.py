"""The honest curve: what leaving hidden units out costs in perplexity, and what it saves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import prunus as pr
from prunus._progress import Progress
from prunus.bench.llm import words
from prunus.bench.llm.found import Section, Verdict
from prunus.bench.llm.plan import Plan
from prunus.llm import Calibration, Model, Usage, load, pack
from prunus.llm.pruning import Tally

__all__ = ["KEEPS", "Point", "measure", "plot", "section"]

KEEPS = (0.8, 0.6, 0.5, 0.4, 0.3)
# What decides, and the rank of the calibration: None for plain magnitudes.
_MODES: tuple[tuple[str, int | None], ...] = (
    ("up", None),
    ("up", 0),
    ("up", 256),
    ("gate", None),
    ("gate", 0),
    ("gate", 256),
    ("predictor", 256),
)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """One share of hidden units and one way to choose them.

    Attributes
    ----------
    mode : str
        What decides, and how.
    keep, live : float
        The share that was asked for, and found over the judged text.
    perplexity, loss : float
        Of that text, and how much larger than the dense model's, relative.
    flops, loaded, read, pages : float
        A token's operations, bytes of weights that it loads from memory, bytes from disk, and pages; with
        what guesses take.
    speed : float
        Tokens a second within the budget.
    """

    mode: str
    keep: float
    live: float
    perplexity: float
    loss: float
    flops: float
    loaded: float
    read: float
    pages: float
    speed: float


def _name(decide: str, rank: int | None) -> str:
    if decide == "predictor":
        return f"predictor, rank {rank}"
    return (
        f"{decide}, plain" if rank is None else f"{decide}, calibrated" + (f", rank {rank}" if rank else "")
    )


def _point(
    name: str,
    memory: Model,
    disk: Model,
    judged: Any,
    plan: Plan,
    prune: Calibration | str | None,
    keep: float,
    dense: float,
) -> Point:
    tally = Tally()
    perplexity = memory.perplexity(judged, prune=prune, keep=keep, tally=tally)
    usage = _decoded(disk, plan, prune, keep)[0]
    steps = max(usage.steps, 1)
    # What comes from disk is counted there: bytes from memory are those of the model that is there.
    of_memory, flops, loaded = _decoded(memory, plan, prune, keep)
    guesses = prune.cost(memory.weights.decide) if isinstance(prune, Calibration) else (0, 0)
    return Point(
        name,
        keep,
        tally.share,
        perplexity,
        perplexity / dense - 1 if dense else 0.0,
        flops / max(of_memory.steps, 1) + guesses[0],
        loaded / max(of_memory.steps, 1) + guesses[1],
        usage.bytes_io / steps,
        usage.misses / steps,
        usage.tokens_per_second,
    )


def _decoded(model: Model, plan: Plan, prune: Any, keep: float) -> tuple[Usage, int, int]:
    """Decode; return what it took, and operations and bytes loaded after the prompt."""
    made = model.stream([plan.prompt], plan.tokens, chat=False, prune=prune, keep=keep)
    next(made)  # the prompt, and the first token
    with pr.trace() as traced:
        for _ in made:
            pass
    return made.usage, traced.flops, traced.bytes_loaded


def measure(
    plan: Plan,
    keeps: Sequence[float] = KEEPS,
    modes: Sequence[tuple[str, int | None]] = _MODES,
) -> list[Point]:
    """Judge a text that was not used for calibration, for each mode and share; the first point is dense."""
    with load(plan.packed) as model:
        text = words.text()
        room = model.weights.config.max_position_embeddings
        # Cut from both ends: what is judged is not what calibrates.
        tokens = model.tokens(text[: 16 * plan.calibrated])[: plan.calibrated]
        judged = model.tokens(text[-16 * plan.judged :])[-min(plan.judged, room) :]
        calibrations: dict[int, Calibration] = {}
        for rank in sorted({rank for _, rank in modes if rank is not None}):
            plan.say(f"curve: calibrating, rank {rank}")
            calibrations[rank] = model.calibrate(tokens, rank=rank, progress=True)
    points: list[Point] = []
    with Progress(1 + len(modes) * len(keeps), "curve") as bar:
        for decide in dict.fromkeys(decide for decide, _ in modes):
            path = plan.packed
            if decide != "up":
                path = plan.folder / f"{decide}.safetensors"
                pack(plan.source, path, decide=decide)
            with load(path) as memory, load(path, plan.budget) as disk:
                for model in (memory, disk):  # as many tokens for every point
                    _endless(model)
                if not points:
                    points.append(_point("dense", memory, disk, judged, plan, "exact", 1.0, 0.0))
                    bar.step("dense")
                for wanted in (rank for one, rank in modes if one == decide):
                    for keep in keeps:
                        name, prune = _name(decide, wanted), None if wanted is None else calibrations[wanted]
                        dense = points[0].perplexity
                        points.append(_point(name, memory, disk, judged, plan, prune, keep, dense))
                        bar.step(f"{name}, {keep:.0%}")
            if path != plan.packed:
                path.unlink()
    return points


def _endless(model: Model) -> None:
    model.speech = replace(model.speech, stops=())


def section(plan: Plan, points: Sequence[Point]) -> Section:
    """Make the table, and hold it against what was wanted at half of the units."""
    rows = [
        [
            p.mode,
            f"{p.keep:g}",
            f"{p.live:.3f}",
            f"{p.perplexity:.3f}",
            f"{p.loss:+.1%}",
            f"{p.flops * 1e-6:.0f}",
            f"{p.loaded / _MIB:.0f}",
            f"{p.read / _MIB:.0f}",
            f"{p.pages:.0f}",
            f"{p.speed:.1f}",
        ]
        for p in points
    ]
    half = {p.mode: p.loss for p in points if p.keep == 0.5}

    def best(decide: str) -> tuple[str, list[float]]:
        found = {m: loss for m, loss in half.items() if m.startswith(decide) and "plain" not in m}
        mode = min(found, key=found.__getitem__, default=f"{decide}, calibrated")
        return mode, [found[mode]] if found else []

    (up_mode, up), (gate_mode, gate) = best("up"), best("gate")
    plain = half.get("gate, plain", 0.0)
    why = "the modes at 0.5 were not run"
    return Section(
        "curve",
        f"{plan.judged} tokens, calibrated on {plan.calibrated} others; reading within the budget",
        [
            "mode",
            "keep",
            "live",
            "perplexity",
            "loss",
            "MFLOP",
            "MiB loaded",
            "MiB read",
            "pages",
            "tokens/s",
        ],
        rows,
        [
            Verdict(f"loss at 0.5, {up_mode}", up, 0.04, False, why),
            Verdict(
                f"loss at 0.5, {gate_mode} / plain",
                [gate[0] / plain] if gate and plain > 0 else [],
                2 / 3,
                False,
                why,
            ),
        ],
        ["FLOPs, bytes and pages: a token's, guesses included; loaded: weights from memory, as multiplied"],
        left=2,
    )


def plot(path: Path, points: Sequence[Point]) -> None:
    """Draw perplexity, and bytes from disk, over the share that was live."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dense, rest = points[0], points[1:]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    parts: tuple[tuple[str, Callable[[Point], float]], ...] = (
        ("loss of perplexity, per cent", lambda p: 100 * p.loss),
        ("MiB read from disk for a token", lambda p: p.read / _MIB),
    )
    for panel, (title, value) in zip(panels, parts, strict=True):
        for mode in dict.fromkeys(p.mode for p in rest):
            here = [dense, *(p for p in rest if p.mode == mode)]
            panel.plot([100 * p.live for p in here], [value(p) for p in here], "o-", ms=3, label=mode)
        panel.set_xlabel("per cent of hidden units live", fontsize=8)
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=7)
    panels[0].set_yscale("symlog", linthresh=1)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
