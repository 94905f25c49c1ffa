"""Every shipped policy loads and belongs to a config of this tree; checkpoints stay small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.policy import load_policy
from experiments.cards import SHIPPED, experiment_file
from experiments.config import ExperimentConfig, load_experiment
from uara.prediction import Physics

FOLDERS = sorted(path.parent for path in SHIPPED.glob("*/card.json"))
LIMIT_MB = 40


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_policy_loads_and_its_card_is_of_the_present_config(folder: Path) -> None:
    card = card_of(folder)
    config = ExperimentConfig.model_validate(card["experiment"])
    policy = load_policy(folder / card["policy"], Physics.of(config.task.physics))
    assert policy.observes == config.observation.view
    present = load_experiment(experiment_file(folder.name), ["seed=0"])
    assert present.task.config_hash() == card["task_hash"]
    assert present == config


def test_checkpoints_stay_small() -> None:
    size = sum(path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file())
    assert size < LIMIT_MB * 2**20
