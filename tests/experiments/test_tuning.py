"""Tuning: which sets play what, on which worlds, and how a search goes on where it was cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments import tuning
from experiments.config import TaskConfig, load_experiment, load_task
from experiments.evaluation import EpisodeRows
from experiments.tuning import TrialFile, TuningConfig, draw_parameters, rungs, tune
from uara.control.completion import CompletionConfig
from uara.errors import UserError
from uara.radio.bank import ChannelBank

SMALL = TuningConfig(trials=4, episodes=2, fresh_episodes=4)


def test_a_third_of_the_sets_goes_on_to_three_times_the_episodes() -> None:
    assert rungs(24, 16) == [(24, 16), (8, 48), (3, 144)]
    assert rungs(4, 2) == [(4, 2), (2, 6)]
    assert rungs(1, 5) == [(1, 5)]


def test_sets_begin_with_that_of_the_task_and_are_repeatable(task: TaskConfig) -> None:
    own = CompletionConfig(harm_weight=0.4)
    controllers = task.controllers.model_copy(update={"completion_greedy": own})
    task = task.model_copy(update={"controllers": controllers})
    sets = draw_parameters(task, TuningConfig(trials=30))
    assert sets[0] == {"harm_weight": 0.4, "switching_margin_s": 1.0, "sweeps": 1}
    assert sets == draw_parameters(task, TuningConfig(trials=30))
    assert sets != draw_parameters(task, TuningConfig(trials=30, seed=1))
    assert all(0 <= s["switching_margin_s"] <= 8 and s["sweeps"] in (1, 2) for s in sets)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Make latency least at a harm weight of 1.5; list the episodes and keys that are played."""
    calls: list[tuple[int, int]] = []

    def shaped(
        controller: object,
        task: TaskConfig,
        bank: ChannelBank,
        *,
        split: str,
        episodes: int,
        seed: int,
    ) -> EpisodeRows:
        assert split == "tuning"
        calls.append((episodes, seed))
        far = abs(task.controllers.completion_greedy.harm_weight - 1.5)
        latency = {"e2e_latency_s": np.full(4, 10 + far)}
        return EpisodeRows("c", "network", np.arange(4), latency, 0.0, False)

    monkeypatch.setattr(tuning, "evaluate_controller", shaped)
    return calls


def test_the_best_parameters_are_found_and_judged_on_other_requests(
    task: TaskConfig, bank: ChannelBank, tmp_path: Path, played: list[tuple[int, int]]
) -> None:
    config = TuningConfig(trials=20, episodes=2, fresh_episodes=7)
    found = tune(task, bank, config, tmp_path / "best.yaml")
    sets = draw_parameters(task, config)
    assert found.best.parameters == min(sets, key=lambda s: abs(s["harm_weight"] - 1.5))
    assert len(found.trials) == 20 + 7 + 3
    assert played == [*[(2, 0)] * 20, *[(6, 0)] * 7, *[(18, 0)] * 3, *[(7, 1)] * 3]


def test_search_that_was_cut_goes_on_and_ends_alike(
    task: TaskConfig, bank: ChannelBank, tmp_path: Path, played: list[tuple[int, int]]
) -> None:
    whole = tune(task, bank, SMALL, tmp_path / "whole.yaml")
    path = tmp_path / "cut.trials.json"
    content = json.loads((tmp_path / "whole.trials.json").read_text())
    content["trials"] = content["trials"][:3]
    path.write_text(json.dumps(content))
    played.clear()
    calls: list[tuple[int, int]] = []
    cut = tune(task, bank, SMALL, tmp_path / "cut.yaml", lambda *now: calls.append(now))
    assert cut.trials == whole.trials
    assert played == [(2, 0), *[(6, 0)] * 2, *[(4, 1)] * 3]
    total = 4 * 2 + 2 * 6 + 3 * 4
    assert calls[-1] == (total, total)


def test_what_is_written_is_what_a_task_takes(
    project: Path, task: TaskConfig, bank: ChannelBank, played: list[tuple[int, int]]
) -> None:
    found = tune(task, bank, SMALL, project / "best.yaml")
    written = yaml.safe_load((project / "best.yaml").read_text())["completion_greedy"]
    assert written.items() >= found.best.parameters.items()
    for load, file in ((load_task, "task.yaml"), (load_experiment, "experiment.yaml")):
        override = "controllers=best.yaml"
        override = override if load is load_task else f"task.{override}"
        config = load(project / file, [override])
        tuned = config if isinstance(config, TaskConfig) else config.task
        own = tuned.controllers.completion_greedy
        assert own == CompletionConfig(**written)
    # A task without parameters of its own keeps the hash that it always had.
    assert "controllers" not in task.model_dump()


def test_trials_of_another_search_are_refused(
    task: TaskConfig, bank: ChannelBank, tmp_path: Path, played: list[tuple[int, int]]
) -> None:
    tune(task, bank, TuningConfig(trials=1, episodes=1, fresh_episodes=1), tmp_path / "a.yaml")
    with pytest.raises(UserError, match="another search"):
        TrialFile(tmp_path / "a.trials.json", task, SMALL)
    (tmp_path / "a.trials.json").write_text("{}")
    with pytest.raises(UserError, match="holds no trials"):
        TrialFile(tmp_path / "a.trials.json", task, SMALL)


def test_controller_without_parameters_is_refused(task: TaskConfig, bank: ChannelBank) -> None:
    with pytest.raises(UserError, match="'max_sinr' has no parameters to tune; allowed: compl"):
        tune(task, bank, TuningConfig(controller="max_sinr"), Path("none.yaml"))


def test_command_tunes_and_evaluate_takes_the_result(
    uara: Callable[..., tuple[int, str, str]], project: Path
) -> None:
    small = ("--trials", 2, "--episodes", 2, "--fresh", 2, "--json", "tune.json")
    status, out, err = uara("tune", "task.yaml", *small)
    assert status == 0, err
    assert "fresh episodes" in out
    rows = json.loads((project / "tune.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == [*["trial"] * 2, "tuned", "as in the task", "reference"]
    best = "controllers=runs/tuning/tiny-completion_greedy.yaml"
    status, out, err = uara("evaluate", "task.yaml", best, "--controller", "completion_greedy")
    assert status == 0, err
    assert "completion_greedy" in out
