"""The stable-baselines3 baseline runs through the common loop and comes back from its file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.policy import load_policy
from agents.sb3 import Sb3Controller, Sb3PpoConfig
from agents.sb3_sac import Sb3SacConfig
from agents.training import TrainingConfig, best_policy_path, train
from envs.action import ControlConfig
from envs.batched import BatchedEnv
from uara.errors import UserError
from uara.network import Controller
from uara.prediction import Physics

MakeEnv = Callable[..., BatchedEnv]
SMALL = Sb3PpoConfig(rollout_slots=4, batch_size=6, epochs=1, hidden=16)
SAC = Sb3SacConfig(
    rollout_slots=4, warmup=12, gradient_steps=1, batch_size=6, capacity=60, hidden=16
)


@pytest.fixture(scope="module")
def run_dir(
    make_env: MakeEnv, every_head: ControlConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("sb3")
    train(make_env(every_head), SMALL, TrainingConfig(env_steps=24), path, seed=0)
    return path


def test_the_policy_plays_networks_of_its_size_only(
    run_dir: Path, make_env: MakeEnv, every_head: ControlConfig, physics: Physics
) -> None:
    controller = load_policy(best_policy_path(run_dir, SMALL), physics)
    assert isinstance(controller, Controller)
    assert isinstance(controller, Sb3Controller)
    assert controller.observes == "network"
    env = make_env(every_head)
    env.reset()
    controller.reset(torch.ones(3, dtype=torch.bool), torch.Generator())
    assert controller.decide(env.world.state()).server.shape == (3, 4)
    larger = make_env(every_head, gain_db=[[-90.0] * 3] * 5)
    larger.reset()
    with pytest.raises(UserError, match="trained with 4 devices and 3 servers"):
        controller.decide(larger.world.state())


def test_training_goes_on_with_the_saved_weights_and_counters(
    run_dir: Path, make_env: MakeEnv, every_head: ControlConfig, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((run_dir / "checkpoint.pt").read_bytes())
    counted: list[float] = []
    train(
        make_env(every_head),
        SMALL,
        TrainingConfig(env_steps=36),
        tmp_path,
        seed=0,
        resume=True,
        report=lambda iteration, metrics: counted.append(iteration),
    )
    assert counted == [3]


def test_a_zip_of_others_is_refused(physics: Physics, tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(UserError, match="no policy of this program"):
        load_policy(path, physics)


def test_sac_comes_back_from_its_file_with_its_box_of_actions(
    make_env: MakeEnv, every_head: ControlConfig, physics: Physics, tmp_path: Path
) -> None:
    seen: list[dict[str, float]] = []
    train(
        make_env(every_head),
        SAC,
        TrainingConfig(env_steps=36),
        tmp_path,
        seed=0,
        report=lambda iteration, metrics: seen.append(dict(metrics)),
    )
    assert [row["time/env_steps"] for row in seen] == [12, 24, 36]
    assert seen[-1]["train/value_loss"] > 0
    assert seen[-1]["rollout/reward"] < 0
    controller = load_policy(best_policy_path(tmp_path, SAC), physics)
    assert controller.name == "sb3_sac"
    env = make_env(every_head)
    env.reset()
    controller.reset(torch.ones(3, dtype=torch.bool), torch.Generator())
    decision = controller.decide(env.world.state())
    assert (decision.power_w <= env.world.state().power_max_w).all()
