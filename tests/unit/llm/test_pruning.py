"""Keeping a share of the hidden units: by magnitude, by calibrated scores, by predictors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus import FormatError, llm
from prunus.llm.calibration import Calibration
from prunus.llm.pruning import Tally
from support.llama import Small, small

TOKENS = np.random.default_rng(5).integers(0, 256, 90)
SIDES = {"up": "up_proj", "gate": "gate_proj"}


@pytest.fixture(scope="module")
def model() -> Small:
    return small(seed=4)


@pytest.fixture(scope="module")
def folder(model: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.folder(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def calibrated(folder: Path) -> dict[int, Calibration]:
    with llm.load(folder, dtype="float32") as m:
        text = np.random.default_rng(6).integers(0, 256, 500)
        return {rank: m.calibrate(text, rank=rank) for rank in (0, 8)}


def inputs(model: Small, folder: Path) -> list[np.ndarray[Any, Any]]:
    """Return each layer's feed-forward input, and what passes through the gate and up-projection."""
    found: list[np.ndarray[Any, Any]] = []
    with llm.load(folder, dtype="float32") as m:
        for _ in m.batches(TOKENS, "exact", watch=lambda _, x: found.append(x.copy())):
            pass
    return found


@pytest.mark.parametrize("decide", ["up", "gate"])
def test_keep_leaves_out_the_smallest_units(model: Small, folder: Path, decide: str) -> None:
    x = inputs(model, folder)[0].astype(np.float64)
    sizes = x @ model.tensors[f"model.layers.0.mlp.{SIDES[decide]}.weight"].astype(np.float64).T
    if decide == "gate":
        sizes = sizes / (1 + np.exp(-sizes))
    order = np.argsort(-np.abs(sizes), axis=1)
    dead = np.zeros((len(TOKENS), 48), bool)
    np.put_along_axis(dead, order[:, 24:], True, axis=1)
    none = np.zeros_like(dead)
    tally = Tally()
    with llm.load(folder, dtype="float32", decide=decide) as m:
        rules = llm.pruning.policies(m.weights, None, 0.5, tally)
        assert rules is not None
        only_first = [rules[0], llm.pruning.Ranked(1.0, None, Tally())]
        from prunus.llm.cache import Cache
        from prunus.llm.forward import Part, forward, logits

        values = forward(m.weights, m.positions, [Part(Cache(m.weights.config), TOKENS)], only_first)
        found = logits(m.weights, values)
    expected = model.logits(TOKENS.tolist(), {0: dead, 1: none})
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert tally.share == 0.5


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("decide", ["up", "gate", "predictor"])
def test_calibrated_shares_are_live(
    folder: Path, calibrated: dict[int, Calibration], rank: int, decide: str
) -> None:
    with llm.load(folder, dtype="float32", decide=decide) as m:
        if decide == "predictor" and not rank:
            with pytest.raises(ValueError, match="no predictors: calibrate with rank="):
                m.logits(TOKENS, prune=calibrated[0], keep=0.5)
            return
        last = 0.0
        dense = m.perplexity(TOKENS)
        for keep in (0.1, 0.3, 0.6, 0.9):
            tally = Tally()
            found = m.perplexity(TOKENS, prune=calibrated[rank], keep=keep, tally=tally)
            assert tally.share == pytest.approx(keep, abs=0.05)
            assert tally.share > last
            assert found != dense
            last = tally.share
        assert m.perplexity(TOKENS, prune=calibrated[rank], keep=1.0) == dense
        assert m.perplexity(TOKENS, prune="exact") == dense


@pytest.mark.parametrize("decide", ["up", "gate"])
def test_weights_and_guesses_lower_the_error(
    model: Small, folder: Path, calibrated: dict[int, Calibration], decide: str
) -> None:
    # Of the layers' outputs, which is what scores are made for.
    errors = {}
    x = inputs(model, folder)[1]
    with llm.load(folder, dtype="float32", decide=decide) as m:
        ffn = m.weights.layers[1].ffn
        exact = ffn(x, "silu")
        for name, prune in (("plain", None), ("weights", calibrated[0]), ("guesses", calibrated[8])):
            rules = llm.pruning.policies(m.weights, prune, 0.5, Tally())
            assert rules is not None
            errors[name] = float(np.linalg.norm(ffn(x, "silu", rules[1]) - exact))
    assert errors["guesses"] < errors["weights"] < errors["plain"]


def test_a_calibration_survives_its_file(
    folder: Path, calibrated: dict[int, Calibration], tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    calibrated[8].save(path)
    with llm.load(folder, dtype="float32") as m:
        expected = m.logits(TOKENS, prune=calibrated[8], keep=0.4)
        np.testing.assert_array_equal(m.logits(TOKENS, prune=path, keep=0.4), expected)
        np.testing.assert_array_equal(m.logits(TOKENS, prune=str(path), keep=0.4), expected)
        assert not np.array_equal(m.logits(TOKENS, keep=0.4), expected)


def test_what_guesses_cost(folder: Path, calibrated: dict[int, Calibration]) -> None:
    with llm.load(folder, dtype="float32") as m:
        config = m.weights.config
    each = 8 * (config.hidden_size + config.intermediate_size) * config.num_hidden_layers
    vectors = (
        8 * config.intermediate_size * config.num_hidden_layers
    )  # what is added, and how far a guess is off
    for decide, sides in (("up", 1), ("gate", 1), ("predictor", 2)):
        assert calibrated[8].cost(decide) == (2 * sides * each, sides * (2 * each + vectors))
        assert calibrated[0].cost(decide) == (0, 0)


def test_predictors_of_a_calibration_survive_their_files(
    calibrated: dict[int, Calibration], tmp_path: Path
) -> None:
    from prunus import Predictor

    x = np.random.default_rng(7).standard_normal((5, 32), np.float32)
    for predictor in calibrated[8].predictors(0.5):
        predictor.save(tmp_path / "p.npz")
        again = Predictor.load(tmp_path / "p.npz")
        np.testing.assert_allclose(again.scores(x), predictor.scores(x), rtol=1e-5)


def test_bad_calibrations(
    folder: Path, calibrated: dict[int, Calibration], tmp_path: Path, model: Small
) -> None:
    import prunus as pr

    path = tmp_path / "c.safetensors"
    with llm.load(folder, dtype="float32") as m:
        with pytest.raises(FileNotFoundError):
            m.logits([1], prune=path, keep=0.5)
        pr.save(path, model.tensors)
        with pytest.raises(FormatError, match="expected a calibration"):
            m.logits([1], prune=path, keep=0.5)
        calibrated[0].save(path)
        with pytest.raises(ValueError, match="say which with keep="):
            m.logits([1], prune=path)
        with pr.open(path) as file:
            arrays = {name: file[name].load() for name in file}  # type: ignore[union-attr]
            told = dict(file.metadata)  # type: ignore[union-attr]
        del arrays["layers.1.gate.levels"]
        pr.save(path, arrays, metadata=told)
        with pytest.raises(FormatError, match=r"as layers\.1\.gate\.levels, got nothing"):
            m.logits([1], prune=path, keep=0.5)
    other = small(intermediate_size=40).folder(tmp_path / "other")
    with llm.load(other) as m, pytest.raises(ValueError, match="is of a model of"):
        m.logits([1], prune=calibrated[0], keep=0.5)


def test_predictors_need_a_calibration(folder: Path) -> None:
    with pytest.raises(ValueError, match="has predictors"):
        llm.load(folder, decide="predictor", keep=0.5)


def test_calibrating_on_disk_is_calibrating_in_memory(
    folder: Path, calibrated: dict[int, Calibration], tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    llm.pack(folder, path, dtype="float32")
    text = np.random.default_rng(6).integers(0, 256, 500)
    with llm.load(path, "1 MiB") as m:
        found = m.calibrate(text)
    for name, values in found._arrays.items():
        np.testing.assert_allclose(values, calibrated[0]._arrays[name], rtol=1e-5, err_msg=name)


def test_too_short_a_text_for_the_rank(folder: Path) -> None:
    with llm.load(folder) as m, pytest.raises(ValueError, match=r"rank must be from 0 .no predictors. to 5"):
        m.calibrate([1, 2, 3, 4, 5], rank=16)


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (-1, ValueError, r"rank must be from 0 \(no predictors\) to 32 .*got -1"),
        (33, ValueError, "rank must be from 0 .* to 32 .*got 33"),
        (1.5, TypeError, "rank must be an integer, got float"),
        (True, TypeError, "rank must be an integer, got a bool"),
    ],
)
def test_ranks_are_refused_before_the_text_passes(
    folder: Path, rank: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with llm.load(folder) as m:
        monkeypatch.setattr(m, "batches", None)
        with pytest.raises(error, match=message):
            m.calibrate(list(range(200)), rank=rank)


def test_options_are_those_of_the_model_one_by_one(folder: Path, calibrated: dict[int, Calibration]) -> None:
    cal = calibrated[0]
    with llm.load(folder) as plain, llm.load(folder, prune=cal, keep=0.7) as m:

        def runs(prune: Any = None, keep: float | None = None) -> list[Any]:
            with m.stream(["a"], 6, chat=False, prune=prune, keep=keep) as made:
                list(made)
            return [m.perplexity(TOKENS, prune=prune, keep=keep), made.completions[0].tokens]

        def said(prune: Any, keep: float | None) -> list[Any]:
            made = plain.generate("a", 6, chat=False, prune=prune, keep=keep)
            return [plain.perplexity(TOKENS, prune=prune, keep=keep), made.tokens]

        assert runs() == said(cal, 0.7)
        assert runs(keep=0.4) == said(cal, 0.4) != said(None, 0.4)
        assert runs(prune="exact") == runs(keep=1.0) == said(None, None)
        assert runs(prune=calibrated[8]) == said(calibrated[8], 0.7)
        with pytest.raises(ValueError, match="contradicts"):
            m.perplexity(TOKENS, prune="exact", keep=0.5)
    with llm.load(folder, prune="exact") as m:
        assert m.perplexity(TOKENS, keep=0.4) == said(None, 0.4)[0]
