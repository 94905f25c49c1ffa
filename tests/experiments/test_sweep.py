"""Runs that are not done twice, go on where they were cut, and keep their rows exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from agents.training import CHECKPOINT
from experiments import sweep as module
from experiments.config import ExperimentConfig, load_experiment
from experiments.evaluation import METRICS, EpisodeRows
from experiments.runs import load_run_config, run_folder, train_experiment
from experiments.sweep import load_rows, run_one, save_rows
from uara.errors import UserError

RUNS, BANKS = Path("runs"), Path("banks")


class CutError(Exception):
    """The end of a process, in the middle of things."""


@pytest.fixture
def config(project: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    """The tiny experiment: three rollouts."""
    monkeypatch.setattr("experiments.runs.VALIDATION_EPISODES", 2)
    return load_experiment(project / "experiment.yaml")


def some_rows() -> EpisodeRows:
    rng = np.random.default_rng(0)
    metrics = {name: rng.normal(size=5) / 3 for name in METRICS}
    metrics["ttft_s"][2] = np.nan
    metrics["tpot_s"][1] = np.inf
    metrics["handovers"][0] = 5e-324
    return EpisodeRows("mappo", "device", np.array([4, 5, 6, 4, 5]), metrics, 1 / 3, True)


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    rows = some_rows()
    save_rows(rows, tmp_path / "deep" / "rows.parquet")
    back = load_rows(tmp_path / "deep" / "rows.parquet")
    assert (back.controller, back.observes, back.decide_s, back.capped) == (
        "mappo", "device", 1 / 3, True,
    )  # fmt: skip
    assert back.world.tolist() == rows.world.tolist()
    for name in METRICS:
        assert back.metrics[name].tobytes() == rows.metrics[name].tobytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rows.parquet"]


def test_a_run_is_trained_once(config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_one(config, RUNS, BANKS)
    assert result == Path("runs/tiny/seed0/evaluation.parquet")
    assert len(load_rows(result).world) == 6
    assert load_run_config(result.parent) == config
    said = yaml.safe_load((result.parent / "config.yaml").read_text())["provenance"]
    assert {"commit", "python", "threads", "command", "packages"} <= set(said)
    written = {path: path.stat().st_mtime_ns for path in result.parent.iterdir()}
    assert not [path for path in written if ".partial" in path.name]

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_experiment", refuse)
    assert run_one(config, RUNS, BANKS) == result
    assert {path: path.stat().st_mtime_ns for path in result.parent.iterdir()} == written


def test_a_run_that_was_cut_goes_on_and_ends_the_same(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_rows(run_one(config, Path("whole"), BANKS))

    def cut(iteration: int, metrics: object) -> None:
        if iteration == 2:
            raise CutError

    folder = run_folder(config, RUNS)
    with pytest.raises(CutError):
        train_experiment(config, folder, banks=BANKS, report=cut)
    assert (folder / CHECKPOINT).exists()
    assert not (folder / "evaluation.parquet").exists()

    # cut again between training and evaluation
    def killed(*args: object, **kwargs: object) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_policy", killed)
        with pytest.raises(CutError):
            run_one(config, RUNS, BANKS)
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert steps == ["env_steps", "16", "32", "48"]

    rows = load_rows(run_one(config, RUNS, BANKS))
    for name in METRICS:
        assert np.array_equal(rows.metrics[name], whole.metrics[name], equal_nan=True), name


def test_a_folder_of_another_config_is_refused(config: ExperimentConfig) -> None:
    folder = run_folder(config, RUNS)
    folder.mkdir(parents=True)
    other = config.model_copy(update={"num_networks": 3})
    content = {"experiment": other.model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"seed0 holds a run of another config; remove it or rena"):
        run_one(config, RUNS, BANKS)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_run_that_never_reached_a_checkpoint_begins_anew_with_its_own_config(
    config: ExperimentConfig,
) -> None:
    folder = run_folder(config, RUNS)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("experiment: {name: old}\n")
    train_experiment(config, folder, banks=BANKS)
    assert load_run_config(folder) == config

    # and then is not trained over
    before = (folder / CHECKPOINT).read_bytes(), (folder / "config.yaml").read_bytes()
    other = config.model_copy(update={"num_networks": 3})
    with pytest.raises(UserError, match="already holds a run"):
        train_experiment(other, folder, banks=BANKS)
    assert ((folder / CHECKPOINT).read_bytes(), (folder / "config.yaml").read_bytes()) == before


@pytest.mark.slow
def test_a_sweep_gives_each_seed_a_run_and_keeps_the_order(project: Path) -> None:
    done: list[Path] = []
    results = module.sweep(
        [project / "experiment.yaml"], range(2), overrides=["training.env_steps=16"],
        root=project / "runs", banks=project / "banks", done=done.append,
    )  # fmt: skip
    assert [path.parent.name for path in results] == ["seed0", "seed1"]
    assert sorted(done) == results
    first, second = (load_rows(path).metrics["e2e_latency_s"] for path in results)
    assert not np.array_equal(first, second)
