"""The loop: exact resume, what is kept, what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from agents import checkpoint
from agents.metrics import MetricsWriter
from agents.network import NetworkConfig
from agents.on_policy import MappoConfig
from agents.policy import load_policy
from agents.training import TrainingConfig, best_policy_path, last_policy_path, train
from envs.action import ControlConfig
from envs.batched import BatchedEnv
from uara.errors import UserError
from uara.network import Controller
from uara.prediction import Physics

MakeEnv = Callable[..., BatchedEnv]
SMALL = MappoConfig(
    network=NetworkConfig(hidden=16), rollout_slots=6, stagger=False, epochs=2, anneal=False
)
SLOTS_PER_ITERATION = 6 * 3


def _training(iterations: int) -> TrainingConfig:
    return TrainingConfig(env_steps=iterations * SLOTS_PER_ITERATION, validate_every=1)


def _equal(a: object, b: object) -> bool:
    """Compare nested dicts and lists, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def test_two_iterations_resumed_for_two_more_equal_four_bit_for_bit(
    make_env: MakeEnv, every_head: ControlConfig, tmp_path: Path
) -> None:
    whole = train(make_env(every_head), SMALL, _training(4), tmp_path / "whole", seed=3)
    train(make_env(every_head), SMALL, _training(2), tmp_path / "parts", seed=3)
    # Another seed: everything that matters must come from the checkpoint.
    parts = train(
        make_env(every_head), SMALL, _training(4), tmp_path / "parts", seed=99, resume=True
    )
    once, twice = checkpoint.load(whole), checkpoint.load(parts)
    assert once["iteration"] == twice["iteration"] == 4
    assert _equal(once["state"], twice["state"])
    columns = ("env_steps", "rollout/reward", "train/policy_loss", "train/value_loss")
    rows = [
        [[row[column] for column in columns] for row in csv.DictReader(path.open())]
        for path in (tmp_path / "whole/metrics.csv", tmp_path / "parts/metrics.csv")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_the_policy_of_least_validated_latency_is_kept_beside_the_last(
    make_env: MakeEnv, physics: Physics, tmp_path: Path
) -> None:
    control = ControlConfig(draft_length=4)
    scores = iter([9.0, 5.0, 7.0])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(controller: Controller) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in controller.actor.state_dict().items()})  # type: ignore[attr-defined]
        return {"e2e_latency_s": next(scores)}

    reported: list[int] = []
    train(
        make_env(control),
        SMALL,
        _training(3),
        tmp_path,
        seed=3,
        validate=validate,
        report=lambda iteration, metrics: reported.append(iteration),
    )
    assert reported == [1, 2, 3]
    best = load_policy(best_policy_path(tmp_path, SMALL), physics)
    last = load_policy(last_policy_path(tmp_path, SMALL), physics)
    whole = load_policy(tmp_path / "checkpoint.pt", physics)
    assert _equal(dict(best.actor.state_dict()), seen[1])  # type: ignore[attr-defined]
    assert _equal(dict(last.actor.state_dict()), seen[2])  # type: ignore[attr-defined]
    assert _equal(dict(whole.actor.state_dict()), seen[2])  # type: ignore[attr-defined]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eval/best_e2e_latency_s"]) for row in rows] == [9.0, 5.0, 5.0]


def test_a_time_limit_ends_the_training(make_env: MakeEnv, tmp_path: Path) -> None:
    training = TrainingConfig(env_steps=10**9, time_limit_s=1e-6)
    path = train(make_env(ControlConfig(draft_length=4)), SMALL, training, tmp_path, seed=0)
    assert checkpoint.load(path)["iteration"] == 1


def test_a_folder_with_a_run_is_not_overwritten_and_one_without_is_not_resumed(
    make_env: MakeEnv, tmp_path: Path
) -> None:
    env = make_env(ControlConfig(draft_length=4))
    with pytest.raises(UserError, match="does not exist"):
        train(env, SMALL, _training(1), tmp_path, seed=0, resume=True)
    train(env, SMALL, _training(1), tmp_path, seed=0)
    with pytest.raises(UserError, match="already holds a run"):
        train(env, SMALL, _training(1), tmp_path, seed=0)
    other = SMALL.model_copy(update={"epochs": 3})
    with pytest.raises(UserError, match="learner config differs"):
        train(env, other, _training(2), tmp_path, seed=0, resume=True)


def test_rows_of_a_training_that_was_cut_are_dropped_and_late_keys_get_a_column(
    tmp_path: Path,
) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, {"train/a": 1.0})
        writer.write(20, {"train/a": 2.0, "eval/b": 5.0})
    with MetricsWriter(tmp_path, 10) as writer:
        writer.write(20, {"train/a": 3.0, "eval/b": 6.0})
        writer.write(30, {"train/a": 4.0})
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["env_steps"] for row in rows] == ["10", "20", "30"]
    assert [row["train/a"] for row in rows] == ["1.0", "3.0", "4.0"]
    assert [row["eval/b"] for row in rows] == ["", "6.0", ""]
