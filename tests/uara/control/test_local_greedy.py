"""The decentralised rival: its choice by hand, and what a phone cannot know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig
from uara.control.local_greedy import LocalGreedy, LocalGreedyConfig
from uara.local_prediction import predict_locally, server_load
from uara.network import Controller, NetworkState, Phase
from uara.prediction import Physics

MakeState = Callable[..., NetworkState]


def choose(state: NetworkState, physics: Physics, **options: float) -> Tensor:
    made = LocalGreedy(AllocationConfig(), physics, LocalGreedyConfig(**options))
    made.reset(torch.ones(state.num_networks, dtype=torch.bool), torch.Generator())
    return made.decide(state).server


def by_hand(
    state: NetworkState, physics: Physics, device: int, harm: float, margin_s: float
) -> int:
    """Go through the servers in reach one by one, as a phone would."""
    times = predict_locally(state, server_load(state), physics)
    best, least = -1, float("inf")
    for j in range(state.num_servers):
        if not state.reachable[0, device, j]:
            continue
        seconds = float(times.remaining_s[0, device, j])
        seconds += harm * float(times.inflicted_s[0, device, j])
        if state.has_request[0, device] and int(state.server[0, device]) == j:
            seconds -= margin_s
        if seconds < least:
            best, least = j, seconds
    return best


@pytest.mark.parametrize(("harm", "margin_s"), [(0.0, 0.0), (1.0, 2.0), (3.0, 8.0)])
def test_each_phone_goes_where_its_own_sum_is_least(
    make_state: MakeState, physics: Physics, harm: float, margin_s: float
) -> None:
    for seed in range(4):
        state = make_state(1, 6, 3, seed=seed)
        chosen = choose(state, physics, harm_weight=harm, switching_margin_s=margin_s)
        for device in state.has_request[0].nonzero().flatten().tolist():
            assert int(chosen[0, device]) == by_hand(state, physics, device, harm, margin_s)


def test_what_only_others_know_changes_nothing(make_state: MakeState, physics: Physics) -> None:
    state = make_state(1, 6, 3, seed=5, reachable=True)
    mine = torch.arange(6) == 2
    private = {
        name: torch.where(mine, getattr(state, name), getattr(state, name) * 0.5)
        for name in ("acceptance", "expected_remaining_tokens", "draft_time_s")
    }
    weaker = torch.where(mine[:, None], state.gain, state.gain * 1e-3)
    other = state.with_(gain=weaker, **private)
    assert choose(other, physics)[0, 2] == choose(state, physics)[0, 2]


def test_a_margin_keeps_a_running_request_and_not_a_new_one(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(8, 5, 3, seed=1, reachable=True, phase=int(Phase.DECODING), server=1)
    assert bool((choose(state, physics, switching_margin_s=1e6) == 1).all())
    assert not bool((choose(state, physics, switching_margin_s=0) == 1).all())
    fresh = make_state(8, 5, 3, seed=1, reachable=True, fresh=True)
    free, bound = (choose(fresh, physics, switching_margin_s=s) for s in (0, 1e6))
    assert torch.equal(free, bound)


def test_it_is_a_controller_that_needs_no_network_view(physics: Physics) -> None:
    made = LocalGreedy(AllocationConfig(), physics)
    assert isinstance(made, Controller)
    assert (made.name, made.observes) == ("local_greedy", "device")
