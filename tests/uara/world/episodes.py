"""Whole episodes that several tests of the world play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.network import Decision, NetworkState, SlotOutcome
from uara.world.world import World

Decide = Callable[[NetworkState], Decision]

GAIN_DB = [[-95.0, -105.0, -112.0], [-108.0, -98.0, -115.0], [-101.0, -99.0, -104.0]]


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Tell whether both are equal tensors or both missing."""
    return a is b if a is None or b is None else torch.equal(a, b)


def start(world: World, *episodes: int) -> World:
    """Begin an episode in every network, all in the bank's first world."""
    everywhere = torch.ones(world.num_networks, dtype=torch.bool)
    first = torch.zeros(world.num_networks, dtype=torch.long)
    world.reset(everywhere, first, torch.tensor(episodes))
    return world


def constant(state: NetworkState, *, server: int = 0, length: int = 4) -> Decision:
    """Send everybody to one server, its band divided equally."""
    like = torch.zeros_like(state.server)
    users = state.has_request.sum(1, keepdim=True).clamp_min(1)
    return Decision(
        server=torch.full_like(like, server),
        bandwidth_hz=(state.uplink_bandwidth_hz[:, [server]] / users).expand(like.shape),
        power_w=state.power_max_w,
        draft_length=torch.full_like(like, length),
    )


def wandering(seed: int, length: int | None = None) -> Decide:
    """Decide at random in every slot, handovers in mid-request included."""
    draw = torch.Generator().manual_seed(seed)

    def decide(state: NetworkState) -> Decision:
        shape = state.server.shape
        lengths = torch.randint(0, 9, shape, generator=draw)
        moves = torch.rand(shape, generator=draw) < 0.1
        anew = torch.randint(state.num_servers, shape, generator=draw)
        return Decision(
            server=torch.where(moves | (state.server < 0), anew, state.server),
            bandwidth_hz=2e5 * torch.rand(shape, generator=draw) + 2e4,
            power_w=state.power_max_w * torch.rand(shape, generator=draw),
            draft_length=lengths if length is None else torch.full(shape, length),
        )

    return decide


@dataclass
class Episode:
    """All slots of a drained episode."""

    states: list[NetworkState]
    outcomes: list[SlotOutcome]

    def stack(self, name: str) -> Tensor:
        """Stack a field of the outcomes along time, (T, B, ...)."""
        return torch.stack([getattr(outcome, name) for outcome in self.outcomes])


def play(world: World, decide: Decide, *, true: bool = True, most_slots: int = 3000) -> Episode:
    episode = Episode([], [])
    for _ in range(most_slots):
        episode.states.append(world.state(true=true))
        episode.outcomes.append(world.step(decide(episode.states[-1])))
        if episode.outcomes[-1].drained.all():
            return episode
    raise AssertionError("the episode did not end")
