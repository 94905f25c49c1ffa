"""Whole episodes for the tests of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from uara.network import Decision, NetworkState, SlotOutcome
from uara.world.world import World

Decide = Callable[[NetworkState], Decision]


@dataclass
class Played:
    """All slots of a drained episode."""

    states: list[NetworkState]
    outcomes: list[SlotOutcome]

    def sum(self, name: str) -> Tensor:
        """Add a field of the outcomes up over time."""
        return self.stack(name).double().sum(0)

    def stack(self, name: str) -> Tensor:
        """Stack a field of the outcomes along time, (T, B, ...)."""
        return torch.stack([getattr(outcome, name) for outcome in self.outcomes])


@pytest.fixture(scope="session")
def to_server() -> Callable[..., Decide]:
    """Make a rule that sends everybody to one server (or to a given one each), full power."""

    def make(server: int | list[int] = 0, length: int = 4, hertz: float = 2e5) -> Decide:
        def decide(state: NetworkState) -> Decision:
            chosen = torch.as_tensor(server).expand(state.server.shape).clone()
            return Decision(
                server=chosen,
                bandwidth_hz=torch.full(chosen.shape, hertz),
                power_w=state.power_max_w,
                draft_length=torch.full_like(chosen, length),
            )

        return decide

    return make


@pytest.fixture(scope="session")
def to_anywhere() -> Callable[..., Decide]:
    """Make a rule that wanders at random, handovers in mid-request included."""

    def make(seed: int) -> Decide:
        draw = torch.Generator().manual_seed(seed)

        def decide(state: NetworkState) -> Decision:
            shape = state.server.shape
            moves = torch.rand(shape, generator=draw) < 0.1
            anew = torch.randint(state.num_servers, shape, generator=draw)
            return Decision(
                server=torch.where(moves | (state.server < 0), anew, state.server),
                bandwidth_hz=3e5 * torch.rand(shape, generator=draw) + 5e4,
                power_w=state.power_max_w,
                draft_length=torch.randint(0, 9, shape, generator=draw),
            )

        return decide

    return make


@pytest.fixture(scope="session")
def play_out() -> Callable[..., Played]:
    """Play an episode of the bank's first world until every request is gone."""

    def run(world: World, decide: Decide, *episodes: int, most_slots: int = 1500) -> Played:
        everywhere = torch.ones(world.num_networks, dtype=torch.bool)
        first = torch.zeros(world.num_networks, dtype=torch.long)
        keys = torch.tensor(episodes or range(1, world.num_networks + 1))
        world.reset(everywhere, first, keys)
        played = Played([], [])
        for _ in range(most_slots):
            played.states.append(world.state())
            played.outcomes.append(world.step(decide(played.states[-1])))
            if played.outcomes[-1].drained.all():
                return played
        raise AssertionError("the episode did not end")

    return run
