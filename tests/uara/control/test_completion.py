"""The fair myopic controller by its definition, and what each of its options is for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.charges import Charges
from uara.control.completion import CompletionConfig, CompletionGreedy
from uara.control.placement import Placement
from uara.network import Controller, Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, predict
from uara.radio.link import LinkConfig
from uara.world.world import World

MakeState = Callable[..., NetworkState]


def controller(physics: Physics, **options: object) -> CompletionGreedy:
    return CompletionGreedy(AllocationConfig(), physics, CompletionConfig(**options))


def decide(state: NetworkState, physics: Physics, **options: object) -> Decision:
    made = controller(physics, **options)
    made.reset(torch.ones(state.num_networks, dtype=torch.bool), torch.Generator())
    return made.decide(state)


# The definition, one network and one prediction at a time.


def completion_s(
    state: NetworkState, allocator: Allocator, server: list[int], present: set[int]
) -> list[float]:
    """Predict every device's remaining time when only some have a request."""
    mask = torch.tensor([[i in present for i in range(state.num_devices)]])
    view = state.with_(phase=torch.where(mask, state.phase, int(Phase.IDLE)))
    decision = allocator.quick(view, torch.tensor([server]))
    return predict(view, decision, allocator.physics, "request").remaining_s[0].tolist()


def scores(
    state: NetworkState,
    allocator: Allocator,
    server: list[int],
    present: set[int],
    device: int,
    harm_weight: float,
) -> list[float]:
    """Weigh own time and what the others lose at each server in reach."""
    weight = (1 + state.waiting_requests[0]).tolist()
    others = present - {device}
    without = completion_s(state, allocator, server, others)
    found = []
    for candidate in range(state.num_servers):
        tried = [candidate if i == device else at for i, at in enumerate(server)]
        along = completion_s(state, allocator, tried, others | {device})
        harm = sum(weight[i] * (along[i] - without[i]) for i in others)
        reach = bool(state.reachable[0, device, candidate])
        found.append(weight[device] * along[device] + harm_weight * harm if reach else math.inf)
    return found


def place_by_definition(state: NetworkState, physics: Physics, harm_weight: float) -> list[int]:
    allocator = Allocator(AllocationConfig(), physics)
    order = state.gain[0].amax(-1).argsort(descending=True).tolist()
    has = {i for i in order if state.has_request[0, i]}
    # A controller that has seen nothing yet has placed nobody.
    server: list[int] = state.server[0].clamp_min(0).tolist()
    present: set[int] = set()
    for device in [i for i in order if i in has]:
        found = scores(state, allocator, server, present, device, harm_weight)
        server[device] = found.index(min(found))
        present.add(device)
    for device in [i for i in order if i in has]:
        found = scores(state, allocator, server, present, device, harm_weight)
        if found[server[device]] - min(found) > 1e-5:
            server[device] = found.index(min(found))
    return server


@pytest.mark.parametrize("harm_weight", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_requests_are_placed_by_own_time_and_weighed_harm(
    make_state: MakeState, physics: Physics, seed: int, harm_weight: float
) -> None:
    state = make_state(1, 5, 3, seed=seed)
    wanted = place_by_definition(state, physics, harm_weight)
    found = decide(state, physics, harm_weight=harm_weight).server[0].tolist()
    has = state.has_request[0].tolist()
    assert [s for s, h in zip(found, has, strict=True) if h] == [
        s for s, h in zip(wanted, has, strict=True) if h
    ]


@pytest.mark.parametrize("seed", range(3))
def test_turns_with_charges_are_the_compiled_turns_where_nothing_is_charged(
    make_state: MakeState, physics: Physics, seed: int
) -> None:
    state = make_state(3, 8, 4, seed=seed)
    allocator = Allocator(AllocationConfig(), physics)
    nothing = Charges(torch.zeros_like(state.gain), None, torch.zeros_like(state.acceptance))
    none = Charges(None, None, torch.zeros_like(state.acceptance))
    servers = []
    for charges in (none, nothing):
        placement = Placement.of(state, allocator, charges, 0.8)
        is_new = state.has_request & (state.server < 0)
        server = placement.insert(state.server.clamp_min(0), is_new)
        servers.append(placement.offer(server, state.has_request, 0.5))
    has = state.has_request
    assert torch.equal(servers[0][has], servers[1][has])


# What each option is for.

RUNNING = {
    "phase": Phase.DECODING, "prompt_tokens": 2000, "tokens_so_far": 10, "kv_tokens": 2010,
    "upload_bits": 0, "server": 0, "reachable": True, "gain": 1e-10, "rtt_s": 0.02,
    "uplink_bandwidth_hz": 1e6, "downlink_bandwidth_hz": 4e6, "acceptance": 0.7,
    "forward_fixed_s": [[0.3, 0.1]], "forward_per_token_s": 0.3e-3, "draft_time_s": 0.02,
    "waiting_requests": 0,
}  # fmt: skip


def decide_twice(state: NetworkState, physics: Physics, **options: object) -> int:
    """Decide for a request that this controller has placed at server 0 a slot ago."""
    made = controller(physics, **options)
    made.reset(torch.ones(1, dtype=torch.bool), torch.Generator())
    only_first = torch.tensor([[[True, False]]])
    made.decide(state.with_(reachable=only_first, time_s=state.time_s - 0.5))
    return int(made.decide(state).server.item())


def test_running_request_moves_only_for_more_than_the_margin(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 1, 2, expected_remaining_tokens=30, **RUNNING)
    allocator = Allocator(AllocationConfig(), physics)
    here, there = (completion_s(state, allocator, [e], {0})[0] for e in (0, 1))
    assert here > there
    margin = here - there
    assert decide_twice(state, physics, switching_margin_s=0.9 * margin) == 1
    assert decide_twice(state, physics, switching_margin_s=1.1 * margin) == 0


def test_networks_that_begin_anew_have_no_margin(make_state: MakeState, physics: Physics) -> None:
    state = make_state(2, 1, 2, expected_remaining_tokens=30, **RUNNING)
    made = controller(physics, switching_margin_s=1e6)
    made.reset(torch.ones(2, dtype=torch.bool), torch.Generator())
    made.decide(state.with_(reachable=torch.tensor([[[True, False]]] * 2)))
    made.reset(torch.tensor([False, True]), torch.Generator())
    assert made.decide(state).server.flatten().tolist() == [0, 1]


def test_harm_to_others_keeps_a_request_from_the_faster_server(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 5, 2, **{
            **RUNNING, "forward_fixed_s": [[0.1, 0.2]], "expected_remaining_tokens": 100,
            "server": [[0, 0, 0, 0, -1]], "kv_tokens": [[2010, 2010, 2010, 2010, 0]],
            "phase": [[3, 3, 3, 3, 1]], "upload_bits": [[0, 0, 0, 0, 1e4]],
        },
    )  # fmt: skip
    crowd = torch.ones(1, 5, 2, dtype=torch.bool)
    crowd[:, :4, 1] = False
    state = state.with_(reachable=crowd)
    assert decide(state, physics, harm_weight=0.0).server[0, 4] == 0
    assert decide(state, physics, harm_weight=1.0).server[0, 4] == 1


def test_cache_of_the_turn_before_is_credited_unless_switched_off(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 1, 2, expected_remaining_tokens=40, **{
            **RUNNING, "phase": Phase.UPLOADING, "prompt_tokens": 12_000, "tokens_so_far": 0,
            "kv_tokens": 11_000, "upload_bits": 1e4, "forward_fixed_s": [[0.16, 0.12]],
        },
    )  # fmt: skip
    assert decide(state, physics).server.item() == 0
    assert decide(state, physics, count_kv=False).server.item() == 1


def test_handover_is_counted_unless_switched_off(make_state: MakeState, physics: Physics) -> None:
    state = make_state(
        1, 1, 2, expected_remaining_tokens=5,
        **{**RUNNING, "forward_fixed_s": [[0.12, 0.1]]},
    )  # fmt: skip
    assert decide_twice(state, physics, switching_margin_s=0) == 0
    assert decide_twice(state, physics, switching_margin_s=0, count_handover=False) == 1


def test_announced_outage_keeps_long_requests_away(make_state: MakeState, physics: Physics) -> None:
    state = make_state(
        1, 1, 2, expected_remaining_tokens=100, **{
            **RUNNING, "server": -1, "kv_tokens": 0, "forward_fixed_s": [[0.1, 0.11]],
            "prompt_tokens": 8000,
        },
    ).with_(outage_in_s=torch.tensor([[3.0, math.inf]]))  # fmt: skip
    assert decide(state, physics).server.item() == 1
    assert decide(state, physics, read_calendar=False).server.item() == 0


def test_price_of_energy_prefers_the_link_that_sends_shorter(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 1, 2, expected_remaining_tokens=60, **{
            **RUNNING, "server": -1, "kv_tokens": 0, "gain": [[[1e-13, 1e-10]]],
            "forward_fixed_s": [[0.1, 0.16]], "power_max_w": 0.2,
        },
    )  # fmt: skip
    assert decide(state, physics).server.item() == 0
    assert decide(state, physics, seconds_per_joule=100.0).server.item() == 1


def test_it_goes_on_with_networks_of_other_sizes(
    make_world: Callable[..., World], physics: Physics
) -> None:
    made = controller(physics, acceptance={}, lengths={}, profile={}, trend={}, heading={})
    for num, devices in ((2, 3), (2, 4), (3, 4)):
        world = make_world([[-90, -80]] * devices, num=num, arrivals_per_s=0.5)
        everyone = torch.ones(num, dtype=torch.bool)
        world.reset(everyone, torch.zeros_like(world.world), torch.arange(num))
        made.reset(everyone, torch.Generator())
        for _ in range(6):
            made.observe(world.step(made.decide(world.state())))


# What every decision keeps to.


@pytest.mark.parametrize(
    "physics_config",
    [
        PhysicsConfig(link=LinkConfig(interference="reuse1")),
        PhysicsConfig(link=LinkConfig(adaptation="mcs")),
        PhysicsConfig(service="fluid"),
        PhysicsConfig(mode="psd"),
        PhysicsConfig(mode="auto"),
    ],
    ids=["reuse1", "mcs", "fluid", "psd", "auto"],
)
def test_it_decides_whatever_the_physics(
    make_state: MakeState, physics_config: PhysicsConfig
) -> None:
    state = make_state(2, 4, 3, seed=3)
    decision = decide(state, Physics.of(physics_config), seconds_per_joule=0.1)
    in_reach = state.reachable.gather(2, decision.server.unsqueeze(-1)).squeeze(-1)
    assert in_reach[state.has_request].all()
    assert torch.isfinite(decision.bandwidth_hz).all()


def test_it_is_a_controller(physics: Physics) -> None:
    made = controller(physics)
    assert isinstance(made, Controller)
    assert (made.name, made.observes) == ("completion_greedy", "network")


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.permutations(range(3)))
def test_decisions_follow_devices_and_servers_however_they_are_numbered(
    make_state: MakeState,
    relabel: Callable[[NetworkState, Tensor], NetworkState],
    physics: Physics,
    seed: int,
    devices: list[int],
    servers: list[int],
) -> None:
    index, at = torch.tensor(devices), torch.tensor(servers)
    state = make_state(2, 5, 3, seed=seed)
    assert state.reachable.gather(2, decide(state, physics).server.unsqueeze(-1))[
        state.has_request
    ].all()
    moved = relabel(state, index)
    per_server = {
        name: getattr(moved, name)[..., at]
        for name in (
            *("gain", "reachable", "forward_fixed_s", "forward_per_row_s", "forward_per_token_s"),
            *("forward_per_context_s", "uplink_bandwidth_hz", "downlink_bandwidth_hz"),
            *("downlink_power_w", "rtt_s", "kv_free_tokens"),
        )
    }
    new_number = at.argsort()
    old_server = torch.where(moved.server >= 0, new_number[moved.server.clamp_min(0)], -1)
    moved = moved.with_(server=old_server, **per_server)
    here, there = decide(state, physics).server[:, index], decide(moved, physics).server
    active = moved.has_request
    assert torch.equal(new_number[here][active], there[active])
