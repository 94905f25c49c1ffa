"""Begins the episodes of a training, spread over the horizon so that every phase is met at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from envs.action import Action
from envs.batched import BatchedEnv
from envs.observation import Observation


@torch.no_grad()
def begin_episodes(
    env: BatchedEnv, act: Callable[[Observation], Action], *, is_staggered: bool
) -> Observation:
    """Reset all networks, and where staggered play until each is in a slot of its own.

    Args:
        env: B networks.
        act: chooses while they are spread.
        is_staggered: else all episodes begin together.
    """
    observation = env.reset()
    if not is_staggered:
        return observation
    horizon = env.last_slot
    turn = torch.arange(env.num_networks) * horizon // env.num_networks
    for slot in range(horizon):
        observation = env.step(act(observation)).observation
        begins = turn == slot
        if bool(begins.any()):
            observation = env.reset(begins)
    return observation
