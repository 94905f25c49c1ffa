"""What every association rule keeps to: masks, numbering, all kinds of physics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.network import NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
Relabel = Callable[[NetworkState, Tensor], NetworkState]
RULES = pytest.mark.parametrize("rule", ASSOCIATION_RULES)
RANDOM = ("random", "max_compute_share")
SERVER_FIELDS = (
    *("forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s"),
    *("server_power_w", "uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w"),
    *("rtt_s", "kv_free_tokens", "foreign_rows", "foreign_prefill_tokens"),
)
PHYSICS = {
    "psd": PhysicsConfig(mode="psd"),
    "fluid": PhysicsConfig(service="fluid"),
    "mcs": PhysicsConfig(link=LinkConfig(adaptation="mcs")),
    "reuse1": PhysicsConfig(link=LinkConfig(interference="reuse1")),
}


def choose(rule: str, state: NetworkState, physics: Physics) -> Tensor:
    allocator = Allocator(AllocationConfig(), physics)
    return ASSOCIATION_RULES[rule](state, allocator, torch.Generator().manual_seed(0))


def relabel_servers(state: NetworkState, order: Tensor) -> NetworkState:
    """Give the servers other numbers: server `order[i]` becomes server i."""
    number = order.argsort()
    server = torch.where(state.server >= 0, number[state.server.clamp_min(0)], -1)
    return state.with_(
        gain=state.gain[..., order],
        reachable=state.reachable[..., order],
        server=server,
        **{name: getattr(state, name)[:, order] for name in SERVER_FIELDS},
    )


@pytest.mark.parametrize("rule", [name for name in ASSOCIATION_RULES if name not in RANDOM])
@settings(max_examples=5)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.permutations(range(3)))
def test_choices_follow_devices_and_servers_however_they_are_numbered(
    make_state: MakeState,
    relabel: Relabel,
    physics: Physics,
    rule: str,
    seed: int,
    devices: list[int],
    servers: list[int],
) -> None:
    # Whole numbers of requests would often be equal, and ties go to the lowest index.
    foreign_rows = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    state = make_state(4, 5, 3, seed=seed, foreign_rows=foreign_rows)
    device, server = torch.tensor(devices), torch.tensor(servers)
    here = choose(rule, state, physics)[:, device]
    there = server[choose(rule, relabel_servers(relabel(state, device), server), physics)]
    active = state.has_request[:, device]
    assert torch.equal(here[active], there[active])


@pytest.mark.parametrize("rule", RANDOM)
def test_random_orders_do_not_favour_a_number(
    rule: str, make_state: MakeState, relabel: Relabel, physics: Physics
) -> None:
    # The same network many times: how often a device is on a server does not hang on numbers.
    state = make_state(1, 4, 3, seed=6, fresh=True, reachable=True).select(torch.zeros(3000).long())
    device, server = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])

    def shares(chosen: Tensor) -> Tensor:
        return (chosen[..., None] == torch.arange(3)).double().mean(0)

    here = shares(choose(rule, state, physics))[device][:, server]
    there = shares(choose(rule, relabel_servers(relabel(state, device), server), physics))
    torch.testing.assert_close(here, there, atol=0.04, rtol=0)


@RULES
@pytest.mark.parametrize("physics", PHYSICS)
def test_choices_stay_in_reach_in_all_physics(
    rule: str, physics: str, make_state: MakeState
) -> None:
    state = make_state(3, 3, 2, seed=11)
    server = choose(rule, state, Physics.of(PHYSICS[physics]))
    in_reach = state.reachable.gather(2, server.unsqueeze(-1)).squeeze(-1)
    assert in_reach[state.has_request].all()


@RULES
def test_devices_without_a_request_change_nothing(
    rule: str, make_state: MakeState, physics: Physics
) -> None:
    state = make_state(20, 6, 3, seed=12)
    idle = ~state.has_request
    other = state.with_(
        gain=torch.where(idle.unsqueeze(-1), state.gain.flip(2), state.gain),
        upload_bits=torch.where(idle, 1e7, state.upload_bits),
        expected_remaining_tokens=torch.where(idle, 1e3, state.expected_remaining_tokens),
        waiting_requests=torch.where(idle, 3.0, state.waiting_requests),
    )
    here, there = (choose(rule, s, physics)[~idle] for s in (state, other))
    assert torch.equal(here, there)


@RULES
def test_a_network_without_requests_is_no_trouble(
    rule: str, make_state: MakeState, physics: Physics
) -> None:
    state = make_state(2, 3, 2, phase=Phase.IDLE)
    server = choose(rule, state, physics)
    assert ((server >= 0) & (server < 2)).all()
