"""Matchings against their definitions: stable pairs, least total cost, places kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.matching import full_house_s, gs_quota, hungarian, quotas
from uara.network import NetworkState, Phase
from uara.prediction import Physics, predict

MakeState = Callable[..., NetworkState]


@pytest.fixture
def allocator(physics: Physics) -> Allocator:
    return Allocator(AllocationConfig(), physics)


def test_quotas_cover_all_requests(make_state: MakeState) -> None:
    state = make_state(1, 7, 3, fresh=True, forward_fixed_s=[[0.1, 0.2, 0.4]])
    assert quotas(state, "equal").tolist() == [[3, 3, 3]]
    assert quotas(state, "speed").tolist() == [[4, 2, 1]]
    assert quotas(make_state(1, 6, 3, fresh=True), "equal").tolist() == [[2, 2, 2]]
    assert quotas(make_state(1, 6, 3, phase=Phase.IDLE), "equal").tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("quota", ["equal", "speed"])
def test_deferred_acceptance_takes_the_strongest_pairs_first(
    quota: str, make_state: MakeState, allocator: Allocator
) -> None:
    # Both sides rank by the same gain, so the one stable matching takes pairs from the top.
    state = make_state(40, 7, 3, fresh=True, seed=5)
    found = gs_quota(state, allocator, torch.Generator(), quota=quota)  # type: ignore[arg-type]
    for network in range(40):
        free = quotas(state, quota)[network].tolist()  # type: ignore[arg-type]
        gain, reach = state.gain[network], state.reachable[network]
        expected: dict[int, int] = {}
        pairs = itertools.product(range(7), range(3))
        for device, server in sorted(pairs, key=lambda pair: -gain[pair].item()):
            if device not in expected and free[server] > 0 and reach[device, server]:
                expected[device] = server
                free[server] -= 1
        strongest = torch.where(reach, gain, -1.0).argmax(1).tolist()
        assert found[network].tolist() == [expected.get(i, strongest[i]) for i in range(7)]


def test_running_requests_take_places(make_state: MakeState, allocator: Allocator) -> None:
    # Two places each; both of server 0 are taken by those that run there.
    state = make_state(
        1, 4, 2, phase=[[Phase.DECODING] * 2 + [Phase.UPLOADING] * 2], server=[[0, 0, -1, -1]],
        reachable=True, gain=[[[1e-9, 1e-10]] * 4],
    )  # fmt: skip
    assert gs_quota(state, allocator, torch.Generator()).tolist() == [[0, 0, 1, 1]]


def test_full_house_is_the_time_among_copies_of_oneself(
    make_state: MakeState, allocator: Allocator
) -> None:
    state = make_state(3, 4, 2, seed=8, fresh=True)
    places = torch.tensor([[3, 1], [2, 2], [1, 4]])
    found = full_house_s(state, allocator, places)
    for network, device, server in itertools.product(range(3), range(4), range(2)):
        count = int(places[network, server])
        names = ("upload_bits", "acceptance", "draft_time_s", "power_max_w", "prompt_tokens")
        house = make_state(1, count, 2, fresh=True).with_(
            **{n: getattr(state, n)[network, device].expand(1, count) for n in names},
            expected_remaining_tokens=state.expected_remaining_tokens[network, device].expand(
                1, count
            ),
            gain=state.gain[network, device].expand(1, count, 2),
            uplink_bandwidth_hz=state.uplink_bandwidth_hz[None, network],
            downlink_bandwidth_hz=state.downlink_bandwidth_hz[None, network],
            rtt_s=state.rtt_s[None, network],
        )
        everybody = torch.full((1, count), server)
        decision = allocator.quick(house, everybody)
        seconds = predict(house, decision, allocator.physics, "request").remaining_s
        torch.testing.assert_close(found[network, device, server], seconds[0, 0], rtol=1e-4, atol=0)


def test_assignment_costs_least_of_all_that_keep_to_the_places(
    make_state: MakeState, allocator: Allocator
) -> None:
    state = make_state(12, 5, 2, seed=1, fresh=True, reachable=True)
    state = state.with_(waiting_requests=(state.gain[..., 0] > 1e-11).float())
    places = quotas(state, "equal")
    cost = full_house_s(state, allocator, places) * (1 + state.waiting_requests).unsqueeze(-1)
    found = hungarian(state, allocator, torch.Generator())
    for network in range(12):
        legal = [
            sum(cost[network, i, e].item() for i, e in enumerate(choice))
            for choice in itertools.product(range(2), repeat=5)
            if all(choice.count(e) <= places[network, e] for e in range(2))
        ]
        chosen = cost[network].gather(1, found[network, :, None]).sum().item()
        assert chosen == pytest.approx(min(legal), rel=1e-5)


def test_who_finds_no_place_in_reach_takes_the_strongest(
    make_state: MakeState, allocator: Allocator
) -> None:
    # Four requests, two places each; three of them reach server 0 alone.
    state = make_state(
        1, 4, 2, fresh=True, gain=[[[4e-10, 1e-9], [3e-10, 1e-9], [2e-10, 1e-9], [1e-10, 1e-9]]],
        reachable=[[[True, False]] * 3 + [[True, True]]],
    )  # fmt: skip
    for rule in (gs_quota, hungarian):
        assert rule(state, allocator, torch.Generator()).tolist() == [[0, 0, 0, 1]]
