"""Rows of the tables of scores: made once, the same after a cut, and rendered from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experiments import score_tables, scores, task_cards
from experiments.config import TaskConfig, load_task
from experiments.evaluation import METRICS, EpisodeRows, evaluate_controller
from experiments.scores import (
    FAIR,
    INFORMED,
    RULES,
    Contender,
    contenders,
    informed,
    make_rows,
    play,
    stored_rows,
)
from experiments.statistics import paired_difference
from experiments.sweep import save_rows
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.radio.bank import ChannelBank


@pytest.fixture
def tiny(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `tiny` a frozen task with one learned experiment; everything stays in its folder."""
    (project / "tasks").mkdir()
    (project / "learned").mkdir()
    (project / "task.yaml").rename(project / "tasks" / "tiny.yaml")
    experiment = yaml.safe_load((project / "experiment.yaml").read_text())
    experiment |= {"name": "tiny-mappo", "task": "../tasks/tiny.yaml"}
    (project / "learned" / "tiny-mappo.yaml").write_text(yaml.safe_dump(experiment))
    monkeypatch.setattr(task_cards, "TASKS", project / "tasks")
    monkeypatch.setattr(scores, "LEARNED", project / "learned")
    monkeypatch.setattr(scores, "ship_policy", lambda *given: None)
    monkeypatch.setattr("experiments.runs.VALIDATION_EPISODES", 2)
    return project


def made(project: Path, contender: Contender, folder: str = "scores") -> Path:
    return play(contender, project / folder, project / folder / "runs", project / "banks")


def test_a_table_has_every_rule_the_rivals_and_each_seed(tiny: Path) -> None:
    rows = contenders("tiny", 2)
    assert [row.name for row in rows if row.seed is None] == list(RULES)
    assert [(row.name, row.seed) for row in rows if row.seed is not None] == [
        ("tiny-mappo", 0), ("tiny-mappo", 1),
    ]  # fmt: skip
    assert {FAIR, INFORMED, "greedy_latency+server_ar", "greedy_latency+device_only"} <= set(RULES)
    assert not [row for row in contenders("tiny", 2, ["masac"]) if row.seed is not None]


def test_a_row_is_played_once_and_again_for_another_version_of_the_task(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []

    def counted(controller: Any, *given: Any, **more: Any) -> EpisodeRows:
        played.append(controller.name)
        return evaluate_controller(controller, *given, **more)

    monkeypatch.setattr(scores, "evaluate_controller", counted)
    contender = Contender("tiny", "max_sinr")
    path = made(tiny, contender)
    assert path == tiny / "scores" / "tiny" / "max_sinr.parquet"
    written = path.read_bytes()
    assert made(tiny, contender) == path
    assert played == ["max_sinr"]
    assert path.read_bytes() == written
    task = tiny / "tasks" / "tiny.yaml"
    task.write_text(task.read_text().replace("episodes: 6", "episodes: 3"))
    with pytest.raises(UserError, match=r"another version of task tiny; make it again with `uara"):
        stored_rows("tiny", tiny / "scores")
    made(tiny, contender)
    assert played == ["max_sinr"] * 2


@pytest.mark.slow
def test_a_learned_row_that_was_cut_ends_as_if_it_was_not(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contender = Contender("tiny", "tiny-mappo", 0)
    whole = made(tiny, contender, "whole")

    class CutError(Exception):
        """The end of a process, in the middle of things."""

    def cut(*given: Any, **more: Any) -> None:
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr("experiments.sweep.load_policy", cut)
        with pytest.raises(CutError):
            made(tiny, contender)
    assert not (tiny / "scores" / "tiny").exists()
    again = made(tiny, contender)
    first, second = (scores.load_rows(path) for path in (whole, again))
    assert first.controller == "tiny-mappo"
    for name, values in first.metrics.items():
        assert np.array_equal(values, second.metrics[name], equal_nan=True), name


class Watcher:
    """A rule that remembers what it was shown."""

    observes = "network"
    name = "watcher"

    def __init__(self, task: TaskConfig) -> None:
        self.inner = RuleController("max_sinr", task.allocation, Physics.of(task.physics))
        self.seen: list[NetworkState] = []
        self.reset, self.observe = self.inner.reset, self.inner.observe

    def decide(self, state: NetworkState) -> Decision:
        """Remember, then decide."""
        self.seen.append(state)
        return self.inner.decide(state)


def test_full_information_is_what_nobody_is_told(task: TaskConfig, bank: ChannelBank) -> None:
    raw = task.model_dump()
    raw["world"] |= {
        "csi_delay_slots": 4, "gain_filter_s": 0.0, "acceptance_prior_tokens": 1e6,
        "believed": {"forward_factor": [1.4, 0.7]},
    }  # fmt: skip
    raw["controllers"] = {
        "completion_greedy": {"harm_weight": 0.5, "acceptance": {}, "profile": {}, "lengths": {}}
    }
    hidden = TaskConfig.model_validate(raw)
    open_ = informed(hidden)
    own = open_.controllers.completion_greedy
    assert own.harm_weight == 0.5
    assert (own.acceptance, own.profile, own.lengths) == (None, None, None)
    told, blind = Watcher(hidden), Watcher(hidden)
    evaluate_controller(told, open_, bank, episodes=3, true_acceptance=True)
    evaluate_controller(blind, hidden, bank, episodes=3)
    worlds = bank.worlds("evaluation")
    late = torch.from_numpy(bank.gain()[worlds, 2])
    assert torch.allclose(blind.seen[6].gain, late, rtol=1e-5)
    # a filter of two seconds over slots of half a second, of the gains up to now
    keep = np.exp(-0.25)
    gain = bank.gain()[worlds, :7].astype(np.float64)
    want = gain[:, 0]
    for slot in range(1, 7):
        want = keep * want + (1 - keep) * gain[:, slot]
    assert np.allclose(told.seen[6].gain, want, rtol=0.05)
    assert told.seen[6].forward_fixed_s[0].tolist() == pytest.approx([0.145, 140e9 / 0.696e12])
    assert blind.seen[6].forward_fixed_s[0].tolist() == pytest.approx(
        [1.4 * 0.145, 0.7 * 140e9 / 0.696e12]
    )
    # Requests of a task differ in their own rate; the hidden one is the mean of the task.
    rates = torch.cat([state.acceptance[state.has_request] for state in told.seen[:8]])
    means = torch.cat([state.acceptance[state.has_request] for state in blind.seen[:8]])
    assert len(rates.unique()) > len(means.round(decimals=3).unique()) > 0


def test_rivals_have_parameters_of_their_own_beside_the_task(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "RIVALS", tiny)
    task = load_task(tiny / "tasks" / "tiny.yaml")
    assert scores.with_rivals(task) == task
    (tiny / "tiny-completion_greedy.yaml").write_text("completion_greedy: {harm_weight: 0.25}\n")
    (tiny / "tiny-local_greedy.yaml").write_text("local_greedy: {switching_margin_s: 7}\n")
    controllers = scores.with_rivals(task).controllers
    assert controllers.completion_greedy.harm_weight == 0.25
    assert controllers.local_greedy.switching_margin_s == 7


@pytest.mark.parametrize("path", sorted(scores.RIVALS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_rival_belongs_to_a_task(path: Path) -> None:
    name, _, controller = path.stem.rpartition("-")
    task = scores.with_rivals(load_task(task_cards.task_file(name)))
    assert getattr(task.controllers, controller) != getattr(
        TaskConfig(name="x").controllers, controller
    )


def store(folder: Path, stem: str, latency: list[float], task_hash: str) -> None:
    metrics = {name: np.ones(4) for name in METRICS} | {
        "e2e_latency_s": np.array(latency), "e2e_p95_s": 2 * np.array(latency),
    }  # fmt: skip
    rows = EpisodeRows(
        stem.partition("-seed")[0], "device", np.array([1, 2, 3, 1]), metrics, 2e-6, False
    )
    save_rows(rows, folder / "tiny" / f"{stem}.parquet", task_hash=task_hash)


def test_a_table_pairs_each_row_with_the_fair_rival(tiny: Path) -> None:
    folder, now = tiny / "scores", load_task(tiny / "tasks" / "tiny.yaml").config_hash()
    fair = [10.0, 12.0, 14.0, 11.0]
    store(folder, FAIR, fair, now)
    runs = [[9.0, 11.5, 12.0, 10.5], [9.5, 11.0, 13.0, 10.0]]
    for seed, latency in enumerate(runs):
        store(folder, f"tiny-mappo-seed{seed}", latency, now)
    store(folder, "random", [20.0, 22.0, 24.0, 21.0], now)
    lines = score_tables.scores(stored_rows("tiny", folder))
    assert [line.name for line in lines] == ["tiny-mappo", FAIR, "random"]
    learned = lines[0]
    want = paired_difference(np.concatenate(runs), fair * 2, [1, 2, 3, 1] * 2, np.repeat([0, 1], 4))
    assert learned.minus_fair_s == pytest.approx((want.mean, want.low, want.high))
    # worlds count once: (10 + 11) / 2, 12, 14
    assert learned.percent == pytest.approx(100 * want.mean / np.mean([10.5, 12, 14]))
    assert (learned.seeds, lines[1].seeds) == (2, 0)
    text = score_tables.markdown("tiny", stored_rows("tiny", folder))
    assert "### tiny (4 episodes)" in text
    assert "| `completion_greedy` | device |  | 12.17" in text
    assert text.count("\n| `") == 3


def test_rows_are_asked_for_in_order_and_told_as_they_finish(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "RULES", ("max_sinr", FAIR))
    done: list[Path] = []
    folder = tiny / "scores"
    files = make_rows(
        ["tiny"], seeds=0, folder=folder, runs=tiny / "runs", banks=tiny / "banks",
        done=done.append,
    )  # fmt: skip
    assert [path.stem for path in files] == ["max_sinr", FAIR, "greedy_latency"]
    assert done == files


def test_the_page_is_what_the_stored_rows_say() -> None:
    text = score_tables.PAGE.read_text(encoding="utf-8")
    assert score_tables.fill_page(text) == text
