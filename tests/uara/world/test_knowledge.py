"""What controllers may know of a world: no future, old gains, and acceptance as rounds show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.uara.world.episodes import GAIN_DB, constant, same, start
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig
from uara.world.config import reachable
from uara.world.requests import TaskType
from uara.world.world import World

MakeWorld = Callable[..., World]
OneTask = Callable[[int, int, float], TaskType]


def test_controllers_see_no_answer_length(make_world: MakeWorld) -> None:
    honest, longer = (start(make_world(GAIN_DB, arrivals_per_s=0.3), 8) for _ in range(2))
    longer.requests.output_tokens.add_(1000)
    for _ in range(60):
        seen, also_seen = honest.state(), longer.state()
        for field in fields(NetworkState):
            assert same(getattr(seen, field.name), getattr(also_seen, field.name)), field.name
        outcome = honest.step(constant(seen))
        longer.step(constant(also_seen))
        if outcome.finished.any():
            return
    raise AssertionError("no answer ended")


def test_controllers_learn_the_acceptance_only_from_rounds(
    make_world: MakeWorld, one_task: OneTask
) -> None:
    world = make_world([[-95.0]], tasks=[one_task(300, 400, 0.0)], arrivals_per_s=0.5)
    start(world, 1)
    world.requests.acceptance.fill_(0.9)  # the task's mean is 0.7
    guesses = []
    for _ in range(30):
        state = world.state()
        if state.has_request.any():
            assert world.state(true=True).acceptance.item() == pytest.approx(0.9)
            if state.tokens_so_far == 0:
                assert state.acceptance.item() == pytest.approx(0.7)
            guesses.append(state.acceptance.item())
        world.step(constant(state))
    assert guesses == sorted(guesses)
    assert 0.75 < guesses[-1] < 0.9


@pytest.mark.parametrize(("length", "true"), [(1, 0.4), (4, 0.85)])
@pytest.mark.parametrize("mode", ["sd", "psd", "async"])
def test_estimate_comes_to_the_acceptance_of_the_request_in_each_mode(
    make_world: MakeWorld, one_task: OneTask, mode: str, length: int, true: float
) -> None:
    physics = Physics.of(PhysicsConfig(mode=mode, window=2))
    task = one_task(200, 4000, 0.0)
    world = make_world(
        [[-90.0]], tasks=[task], arrivals_per_s=0.5, physics=physics, acceptance_prior_tokens=0.5
    )
    start(world, 1)
    world.requests.acceptance.fill_(true)
    while world.state().tokens_so_far < 60:
        world.step(constant(world.state(), length=length))
    state, now = world.state(), world.progress
    tested = now.tested.item()
    assert state.acceptance.item() == pytest.approx(true, abs=0.01)
    assert now.accepted.item() == pytest.approx(true * tested, rel=1e-4)
    # Every token was tested, but for the bonus behind a draft accepted as a whole.
    bonus = 0.0
    if mode == "sd":
        bonus = true**length / sum(true**k for k in range(length + 1))
    tokens = state.tokens_so_far.item()
    rejected = tested - now.accepted.item()
    assert now.accepted.item() + rejected == pytest.approx(tokens * (1 - bonus), rel=1e-3)


def test_controllers_see_old_filtered_gains_and_the_world_uses_those_of_the_slot(
    make_world: MakeWorld,
) -> None:
    level_db = np.random.default_rng(0).uniform(-120, -90, (12, 1, 1)).astype(np.float16)
    world = start(make_world(level_db, csi_delay_slots=2, gain_filter_s=0.0), 1)
    for slot in range(12):
        expected = 10 ** (level_db[max(slot - 2, 0)].item() / 10)
        assert world.state().gain.item() == pytest.approx(expected, rel=1e-5)
        now = 10 ** (level_db[slot].item() / 10)
        assert world.state(true=True).gain.item() == pytest.approx(now, rel=1e-5)
        world.step(constant(world.state()))


def test_strongest_server_is_always_in_reach() -> None:
    gain = 10 ** (torch.tensor([[[-100.0, -139.0, -141.0], [-150.0, -145.0, -160.0]]]) / 10)
    assert reachable(gain, -140.0).tolist() == [[[True, True, False], [False, True, False]]]
