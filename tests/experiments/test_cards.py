"""Shipped policies: what their cards say, and that their stored rows come again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agents.policy import load_policy
from experiments.cards import SHIPPED, ship_policy
from experiments.config import PROJECT, ExperimentConfig, load_experiment
from experiments.evaluation import METRICS, EpisodeRows, evaluate_controller, load_bank
from experiments.scores import LEARNED, stored_rows
from uara.prediction import Physics
from uara.radio.bank import bank_path

CARDS = sorted(SHIPPED.glob("*/card.json"))
# Of the frozen tasks, whose rows are stored episode by episode; the others by their means.
SCORED = [card for card in CARDS if (LEARNED / f"{card.parent.name}.yaml").is_file()]


def rows(observes: str) -> EpisodeRows:
    metrics = {name: np.array([1.25, 2.25]) for name in METRICS}
    return EpisodeRows("any", observes, np.array([4, 5]), metrics, 1e-3, False)


@pytest.mark.parametrize(
    ("learner", "suffix", "observes", "said"),
    [
        ("mappo", ".pt", "device", ["own links", "any number of devices"]),
        ("sb3_ppo", ".zip", "network", ["whole state", "only as many devices"]),
    ],
)
def test_a_card_says_what_its_policy_is(
    project: Path, learner: str, suffix: str, observes: str, said: list[str]
) -> None:
    other = [] if learner == "mappo" else ["learner={kind: sb3_ppo}"]
    config = load_experiment(project / "experiment.yaml", other)
    run_dir = project / "run"
    run_dir.mkdir()
    (run_dir / f"policy{suffix}").write_bytes(b"weights")
    policy = ship_policy(config, run_dir, rows(observes), project / "shipped")
    assert policy.read_bytes() == b"weights"
    assert sorted(path.name for path in policy.parent.iterdir()) == sorted(
        ["card.json", "card.md", f"policy{suffix}"]
    )
    card = json.loads((policy.parent / "card.json").read_text())
    assert ExperimentConfig.model_validate(card["experiment"]) == config
    assert card["task_hash"] == config.task.config_hash()
    assert card["observes"] == observes
    assert card["row"]["ttft_s"]["mean"] == 1.75
    text = " ".join((policy.parent / "card.md").read_text().split())
    for part in said:
        assert part in text
    assert "| ttft_s (s) | 1.75 |" in text


def test_policies_are_shipped() -> None:
    assert CARDS, f"no policy is shipped under {SHIPPED}; `uara results` makes them"
    for card in CARDS:
        config = ExperimentConfig.model_validate(json.loads(card.read_text())["experiment"])
        policy = next(card.parent.glob("policy.*"))
        controller = load_policy(policy, Physics.of(config.task.physics))
        assert controller.observes == json.loads(card.read_text())["observes"]
        assert json.loads(card.read_text())["task_hash"] == config.task.config_hash()


@pytest.mark.slow
@pytest.mark.parametrize(
    "card", [card for card in CARDS if card not in SCORED], ids=lambda path: path.parent.name
)
def test_a_shipped_policy_gives_its_stored_row_again(card: Path) -> None:
    stored = json.loads(card.read_text())
    config = ExperimentConfig.model_validate(stored["experiment"])
    policy = load_policy(next(card.parent.glob("policy.*")), Physics.of(config.task.physics))
    bank = load_bank(config.task, PROJECT / "banks")
    again = evaluate_controller(policy, config.task, bank)
    for name in METRICS:
        # Another processor rounds otherwise, and one choice in a thousand may turn on it.
        assert again.interval(name).mean == pytest.approx(
            stored["row"][name]["mean"], rel=0.01, abs=1e-3
        ), name


@pytest.mark.slow
@pytest.mark.parametrize("card", SCORED, ids=lambda path: path.parent.name)
def test_a_policy_of_a_task_gives_its_first_stored_episodes_again(card: Path) -> None:
    config = ExperimentConfig.model_validate(json.loads(card.read_text())["experiment"])
    if not bank_path(config.task.bank, PROJECT / "banks").is_file():
        pytest.skip(
            f"bank not built: uara channels build experiments/tasks/{config.task.name}.yaml"
        )
    stored = stored_rows(config.task.name)[card.parent.name].runs[0]
    policy = load_policy(next(card.parent.glob("policy.*")), Physics.of(config.task.physics))
    bank = load_bank(config.task, PROJECT / "banks")
    again = evaluate_controller(policy, config.task, bank, episodes=4)
    assert again.world.tolist() == stored.world[:4].tolist()
    # Another processor rounds otherwise, and one choice in a thousand may turn on it.
    assert again.metrics["e2e_latency_s"] == pytest.approx(
        stored.metrics["e2e_latency_s"][:4], rel=0.03
    )
