"""Policy files: what they give back and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import checkpoint
from agents.network import NetworkConfig
from agents.policy import PolicyController, build_actor, load_policy, policy_content
from envs.action import ControlConfig
from envs.batched import BatchedEnv
from uara.errors import UserError
from uara.network import Controller
from uara.prediction import Physics, PhysicsConfig

MakeEnv = Callable[..., BatchedEnv]


@pytest.fixture
def policy_file(every_head: ControlConfig, tmp_path: Path) -> Path:
    network = NetworkConfig(hidden=16)
    torch.manual_seed(0)
    actor = build_actor(network, every_head, "device", 8)
    path = tmp_path / "policy.pt"
    checkpoint.save(path, policy_content("mappo", actor, network, every_head, 8))
    return path


def test_a_loaded_policy_is_a_controller_whose_decisions_respect_the_budgets(
    policy_file: Path, physics: Physics, make_env: MakeEnv, every_head: ControlConfig
) -> None:
    controller = load_policy(policy_file, physics, name="ours", deterministic=False)
    assert isinstance(controller, Controller)
    assert (controller.name, controller.observes) == ("ours", "device")
    env = make_env(every_head, arrivals_per_s=2.0)
    env.reset()
    controller.reset(torch.ones(3, dtype=torch.bool), torch.Generator().manual_seed(0))
    for _ in range(4):
        outcome = env.world.step(controller.decide(env.world.state()))
        controller.observe(outcome)
    state = env.world.state()
    decision = controller.decide(state)
    assert state.has_request.any()
    used = torch.zeros(3, 3).scatter_add(1, decision.server, decision.bandwidth_hz)
    assert (used <= state.uplink_bandwidth_hz * (1 + 1e-5)).all()
    assert (decision.power_w <= state.power_max_w).all()
    assert ((decision.draft_length >= 0) & (decision.draft_length <= 8)).all()


def test_a_deterministic_policy_repeats_itself_and_a_drawing_one_follows_its_generator(
    policy_file: Path, physics: Physics, make_env: MakeEnv, every_head: ControlConfig
) -> None:
    env = make_env(every_head, arrivals_per_s=2.0)
    env.reset()
    state = env.world.state()
    everybody = torch.ones(3, dtype=torch.bool)

    def power(deterministic: bool, seed: int) -> torch.Tensor:
        controller = load_policy(policy_file, physics, deterministic=deterministic)
        controller.reset(everybody, torch.Generator().manual_seed(seed))
        return controller.decide(state).power_w

    assert torch.equal(power(True, 0), power(True, 1))
    assert torch.equal(power(False, 0), power(False, 0))
    assert not torch.equal(power(False, 0), power(False, 1))


def test_a_missing_file_is_told_in_one_line(physics: Physics, tmp_path: Path) -> None:
    for name in ("nothing.pt", "nothing.zip"):
        with pytest.raises(UserError, match="does not exist") as error:
            load_policy(tmp_path / name, physics)
        assert "\n" not in str(error.value)


def _spoil(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=99), "format version 99"),
        (lambda c: c.update(format="other"), "no policy file"),
        (lambda c: c["schema"]["pair"].pop(), "pair features differ"),
        (lambda c: c["schema"].update(version=0), "schema version 0"),
        (lambda c: c["actor"].popitem(), "no complete policy"),
        (lambda c: c.pop("control"), "no complete policy"),
    ],
)
def test_a_policy_of_another_make_is_refused_in_one_line(
    policy_file: Path, physics: Physics, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _spoil(policy_file, change)
    with pytest.raises(UserError, match=message) as error:
        load_policy(policy_file, physics)
    assert "\n" not in str(error.value)


def test_foreign_bytes_are_refused_and_not_run(physics: Physics, tmp_path: Path) -> None:
    for name in ("text.pt", "text.zip"):
        (tmp_path / name).write_text("not a policy")
        with pytest.raises(UserError, match="give a file that `uara train` wrote"):
            load_policy(tmp_path / name, physics)


def test_a_policy_of_other_draft_lengths_is_refused(policy_file: Path) -> None:
    shorter = Physics.of(PhysicsConfig(max_draft_length=6))
    with pytest.raises(UserError, match="up to 8, the task allows up to 6"):
        load_policy(policy_file, shorter)


def test_a_policy_plays_networks_of_any_size(
    policy_file: Path, physics: Physics, make_env: MakeEnv, every_head: ControlConfig
) -> None:
    controller = load_policy(policy_file, physics)
    assert isinstance(controller, PolicyController)
    env = make_env(every_head, gain_db=[[-90.0] * 5] * 7)
    env.reset()
    assert controller.decide(env.world.state()).server.shape == (3, 7)
