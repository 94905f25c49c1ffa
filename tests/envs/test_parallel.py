"""The PettingZoo view: its contract, determinism over many steps, what an agent is told."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test

from envs import ControlConfig, EnvRecipe, observe, parallel_env
from envs.flat import flatten_devices
from envs.parallel import NetworkParallelEnv
from uara.errors import UserError

ALL = ControlConfig(
    association="learned", bandwidth="learned", power="learned", draft_length="learned"
)


def sample(env: NetworkParallelEnv, observations: dict[str, Any]) -> dict[str, Any]:
    return {a: env.action_space(a).sample(observations[a]["action_mask"]) for a in env.agents}


def trajectory(env: NetworkParallelEnv, seed: int, steps: int) -> list[np.ndarray]:
    for i, agent in enumerate(env.possible_agents):
        env.action_space(agent).seed(i)
    observations, _ = env.reset(seed=seed)
    seen = []
    for _ in range(steps):
        if not env.agents:
            observations, _ = env.reset()
        observations, rewards, *_ = env.step(sample(env, observations))
        rows = [observations[agent]["observation"] for agent in env.possible_agents]
        seen.append(np.concatenate([*rows, env.state(), list(rewards.values())]))
    return seen


@pytest.mark.parametrize("control", [ALL, ControlConfig(draft_length=3)])
def test_pettingzoo_finds_no_fault(recipe: EnvRecipe, control: ControlConfig) -> None:
    env = parallel_env(replace(recipe, control=control))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(env, num_cycles=25)


def test_two_instances_with_one_seed_agree_over_200_steps(recipe: EnvRecipe) -> None:
    recipe = replace(recipe, control=ALL)
    first = trajectory(parallel_env(recipe), 3, 200)
    second = trajectory(parallel_env(recipe, seed=8), 3, 200)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seeds_differ_and_instances_share_no_randomness(recipe: EnvRecipe) -> None:
    recipe = replace(recipe, control=ControlConfig(draft_length=3))
    env, other = parallel_env(recipe), parallel_env(recipe)
    alone = trajectory(env, 3, 25)
    env.reset(seed=3)
    other.reset(seed=4)
    assert not np.array_equal(trajectory(other, 4, 25), alone)
    torch.rand(3)
    assert np.array_equal(trajectory(env, 3, 25), alone)


def test_agent_is_told_its_own_device_view(recipe: EnvRecipe) -> None:
    env = parallel_env(replace(recipe, control=ALL))
    observations, infos = env.reset(seed=1)
    for _ in range(10):
        observations, _, _, _, infos = env.step(sample(env, observations))
        rows = flatten_devices(observe(env.env.state, env.env.world.physics))[0]
        reach = env.env.state.reachable[0]
        assert env.state_space.contains(env.state())
        for i, agent in enumerate(env.agents):
            assert env.observation_space(agent).contains(observations[agent])
            assert np.array_equal(observations[agent]["observation"], rows[i].numpy())
            assert np.array_equal(infos[agent]["action_mask"], reach[i].numpy())


def test_illegal_server_is_told(recipe: EnvRecipe) -> None:
    env = parallel_env(replace(recipe, control=ControlConfig(draft_length=3)))
    env.reset(seed=0)
    told = 0
    for _ in range(18):
        state = env.env.state
        worst = state.gain[0].argmin(-1)
        expected = state.has_request[0] & ~state.reachable[0, torch.arange(5), worst]
        actions = {agent: {"server": int(worst[i])} for i, agent in enumerate(env.agents)}
        infos = env.step(actions)[4]
        assert [info["illegal_server"] for info in infos.values()] == expected.tolist()
        told += int(expected.sum())
    assert told > 0


def test_misuse_ends_in_one_line(recipe: EnvRecipe) -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        parallel_env(replace(recipe, control=ControlConfig(association="max_sinr")))
    env = parallel_env(replace(recipe, control=ControlConfig(draft_length=3)))
    with pytest.raises(UserError, match="call reset"):
        env.step({})
    env.reset()
    with pytest.raises(UserError, match="give one for each of device_0"):
        env.step({"device_1": {"server": 0}})


def test_render_gives_an_image(recipe: EnvRecipe) -> None:
    env = parallel_env(recipe, render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    assert image is not None
    assert image.ndim == 3
    assert image.dtype == np.uint8
    assert parallel_env(recipe).render() is None
