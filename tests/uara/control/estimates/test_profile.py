"""Servers that are slower or faster than believed are found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.control.allocation import AllocationConfig
from uara.control.estimates.experience import Experience
from uara.control.estimates.profile import ProfileEstimate, ProfileEstimateConfig
from uara.control.rules import RuleController
from uara.prediction import Physics
from uara.world.config import BelievedConfig
from uara.world.requests import TaskType
from uara.world.world import World


def follow(world: World, physics: Physics, slots: int) -> ProfileEstimate:
    """Let the strongest servers serve and learn from each slot."""
    rule = RuleController("max_sinr", AllocationConfig(), physics)
    estimate = ProfileEstimate(ProfileEstimateConfig(), physics)
    nobody = torch.zeros(world.num_networks, dtype=torch.bool)
    world.reset(~nobody, torch.zeros_like(world.world), torch.arange(world.num_networks))
    for _ in range(slots):
        state = world.state()
        estimate.begin(state, nobody)
        seen = estimate.correct(state)
        decision = rule.decide(seen)
        outcome = world.step(decision)
        past = Experience(state, seen, decision, outcome, world.state(), ~nobody)
        estimate.learn(past)
    return estimate


@pytest.mark.parametrize("believed", [(0.7, 1.3), (1.0, 1.0)])
def test_wrong_profile_is_found_within_seconds(
    make_world: Callable[..., World],
    one_task: Callable[[int, int], TaskType],
    physics: Physics,
    believed: tuple[float, float],
) -> None:
    gain_db = [[-80, -100]] * 3 + [[-100, -80]] * 3
    world = make_world(
        gain_db, num=4, slots=40, tasks=[one_task(200, 400)], arrivals_per_s=0.5,
        believed=BelievedConfig(forward_factor=believed), acceptance_std=0.0,
    )  # fmt: skip
    found = follow(world, physics, slots=24).factors()
    truth = 1 / torch.tensor(believed)
    torch.testing.assert_close(found, truth.expand(4, -1), rtol=0.05, atol=0)


def test_servers_without_decoding_devices_keep_their_factor(
    make_world: Callable[..., World], one_task: Callable[[int, int], TaskType], physics: Physics
) -> None:
    world = make_world(
        [[-80, -100]] * 3, num=2, slots=40, tasks=[one_task(200, 400)], arrivals_per_s=0.5,
        believed=BelievedConfig(forward_factor=(0.7, 0.7)),
    )  # fmt: skip
    found = follow(world, physics, slots=16).factors()
    assert (found[:, 0] > 1.3).all()
    assert (found[:, 1] == 1).all()
