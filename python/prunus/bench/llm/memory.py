"""In memory, one token at a time, beside llama.cpp or transformers at the same bits."""

import os
import statistics
from typing import Any

from prunus._progress import Progress
from prunus.bench.llm import peers
from prunus.bench.llm.found import Section, Verdict
from prunus.bench.llm.plan import Plan
from prunus.bench.llm.worker import WorkerError, work
from prunus.bench.machine import optional

__all__ = ["peer_speeds"]

_THREADS = 2


def peer_speeds(plan: Plan) -> Section:
    """Time tokens of each in turn, with two threads."""
    names: dict[str, tuple[str, str]] = {}
    if plan.source.suffix == ".gguf" and optional("llama_cpp") is not None:
        for bits in ("f16", "bf16"):
            path = plan.folder / f"{bits}.gguf"
            peers.write_gguf(str(plan.source), path, bits)
            names[f"llama.cpp, {bits}"] = "llama.cpp", str(path)
    elif optional("transformers") is not None:
        names["transformers, bfloat16"] = "transformers", str(plan.source)
    why = "" if names else "llama-cpp-python with a GGUF file, or transformers, is needed"
    ours: list[dict[str, Any]] = []
    theirs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    common = {"prompt": plan.prompt, "tokens": plan.tokens, "threads": _THREADS}
    before = os.environ.get("PRUNUS_NUM_THREADS")
    os.environ["PRUNUS_NUM_THREADS"] = str(_THREADS)  # of the processes that are started
    try:
        with Progress(plan.rounds * (1 + len(names)), "memory") as bar:
            for _ in range(plan.rounds):
                more = {"model": str(plan.packed), "chat": False, "endless": True}
                ours.append(work("generate", {**common, **more}))
                bar.step("prunus")
                for name, (task, model) in names.items():
                    try:
                        theirs[name].append(work(task, {**common, "model": model}))
                    except WorkerError as error:
                        why = f"{name}: {error}"
                        plan.say(why)
                    bar.step(name)
    finally:
        if before is None:
            del os.environ["PRUNUS_NUM_THREADS"]
        else:
            os.environ["PRUNUS_NUM_THREADS"] = before
        for _, model in names.values():
            if model.startswith(str(plan.folder)):
                os.unlink(model)

    def each(found: dict[str, Any]) -> float:
        return float(found["seconds"]) / max(int(found["steps"]), 1)

    rows = [["prunus", f"{1 / statistics.median(map(each, ours)):.1f}"]]
    rows += [[name, f"{1 / statistics.median(map(each, f)):.1f}"] for name, f in theirs.items() if f]
    best = [[each(f[i]) for f in theirs.values() if i < len(f)] for i in range(len(ours))]
    speeds = [min(times) / each(found) for found, times in zip(ours, best, strict=True) if times]
    title = f"in memory, one token at a time, {_THREADS} threads, matrices of 16 bits"
    wanted = [Verdict("speed / the fastest of the others", speeds, 0.8, why=why)]
    return Section("memory", title, ["", "tokens/s"], rows, wanted)
