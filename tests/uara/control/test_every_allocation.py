"""What every combination of rules keeps to: budgets, limits, masks, and no names of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uara.control.allocation import (
    AllocationConfig,
    Allocator,
    BandwidthName,
    ComputeName,
    PowerName,
)
from uara.network import Decision, NetworkState
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
PHYSICS = {
    "orthogonal": PhysicsConfig(),
    "reuse1": PhysicsConfig(link=LinkConfig(interference="reuse1")),
    "mcs": PhysicsConfig(link=LinkConfig(adaptation="mcs")),
    "reuse1 mcs": PhysicsConfig(link=LinkConfig(interference="reuse1", adaptation="mcs")),
    "psd": PhysicsConfig(mode="psd"),
    "device_only": PhysicsConfig(mode="device_only"),
    "fluid": PhysicsConfig(service="fluid"),
}
BANDWIDTH = [name for name in get_args(BandwidthName) if name != "joint_min_max"]
COMPUTE = [name for name in get_args(ComputeName) if name != "joint_min_max"]


@st.composite
def allocations(draw: st.DrawFn) -> tuple[AllocationConfig, Physics]:
    """Draw rules that go together, and physics to apply them to."""
    physics = Physics.of(PHYSICS[draw(st.sampled_from(sorted(PHYSICS)))])
    is_fluid = physics.config.service == "fluid"
    is_joint = is_fluid and draw(st.booleans())
    chosen: dict[str, object] = {
        "bandwidth": draw(st.sampled_from(BANDWIDTH)),
        "power": draw(st.sampled_from(get_args(PowerName))),
        "draft_length": draw(st.sampled_from([0, 3, "argmin", "log_threshold", "ucb"])),
        "mode": draw(st.sampled_from(["task", "task", "sd", "async", "best_mode"])),
        "compute_share": draw(st.sampled_from(COMPUTE)) if is_fluid else "undecided",
    }
    if is_joint:
        chosen |= {"bandwidth": "joint_min_max", "compute_share": "joint_min_max"}
    return AllocationConfig.model_validate(chosen), physics


def in_float64(state: NetworkState) -> NetworkState:
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return state.with_(
        **{k: v.double() for k, v in values.items() if v is not None and v.is_floating_point()}
    )


def choose(state: NetworkState) -> Tensor:
    return state.gain.masked_fill(~state.reachable, 0).argmax(-1)


def by_server(values: Tensor, server: Tensor, number: int) -> Tensor:
    return torch.where(server == number, values, 0.0).sum(1)


@settings(max_examples=80)
@given(allocations(), st.integers(0, 10_000), st.integers(1, 6))
def test_allocation_keeps_to_budgets_limits_and_masks(
    make_state: MakeState, rules: tuple[AllocationConfig, Physics], seed: int, devices: int
) -> None:
    config, physics = rules
    state = in_float64(make_state(3, devices, 3, seed=seed))
    server = choose(state)
    decision = Allocator(config, physics)(state, server)
    assert torch.equal(decision.server, server)
    assert (decision.bandwidth_hz[~state.has_request] == 0).all()
    assert (decision.bandwidth_hz >= 0).all()
    assert ((decision.power_w >= 0) & (decision.power_w <= state.power_max_w)).all()
    assert ((decision.draft_length >= 0) & (decision.draft_length <= 8)).all()
    for number in range(3):
        used_hz = by_server(decision.bandwidth_hz, server, number)
        band_hz = state.uplink_bandwidth_hz[:, number]
        idle = used_hz == 0
        assert (idle | (used_hz <= band_hz * (1 + 1e-9))).all()
        if physics.config.link.adaptation != "mcs":  # where wide shares may kill a link
            assert (idle | (used_hz >= band_hz * (1 - 1e-9))).all()
        if decision.compute_share is not None:
            total = by_server(decision.compute_share, server, number)
            assert ((total == 0) | ((total - 1).abs() < 1e-9)).all()


def relabelled(decision: Decision, order: Tensor) -> Decision:
    values = {field.name: getattr(decision, field.name) for field in fields(decision)}
    return Decision(**{k: None if v is None else v[:, order] for k, v in values.items()})


def same(here: Decision, there: Decision, active: Tensor) -> None:
    for field in fields(here):
        old, new = getattr(here, field.name), getattr(there, field.name)
        assert (old is None) == (new is None)
        if old is not None:
            torch.testing.assert_close(
                new[active], old[active], rtol=1e-6, atol=1e-9, msg=field.name
            )


@settings(max_examples=30)
@given(allocations(), st.integers(0, 10_000), st.permutations(range(5)))
def test_allocation_follows_the_devices_however_they_are_numbered(
    make_state: MakeState,
    relabel: Callable[[NetworkState, Tensor], NetworkState],
    rules: tuple[AllocationConfig, Physics],
    seed: int,
    order: list[int],
) -> None:
    index, allocator = torch.tensor(order), Allocator(*rules)
    state = in_float64(make_state(3, 5, 3, seed=seed))
    server = choose(state)
    there = allocator(relabel(state, index), server[:, index])
    same(relabelled(allocator(state, server), index), there, state.has_request[:, index])


SERVER_FIELDS = (
    *("forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s"),
    *("server_power_w", "uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w"),
    *("rtt_s", "kv_free_tokens", "foreign_rows", "foreign_prefill_tokens"),
)


@settings(max_examples=30)
@given(allocations(), st.integers(0, 10_000), st.permutations(range(3)))
def test_allocation_follows_the_servers_however_they_are_numbered(
    make_state: MakeState, rules: tuple[AllocationConfig, Physics], seed: int, order: list[int]
) -> None:
    index, allocator = torch.tensor(order), Allocator(*rules)
    state = in_float64(make_state(3, 5, 3, seed=seed))
    server, new_number = choose(state), torch.tensor(order).argsort()
    renamed = state.with_(
        gain=state.gain[..., index],
        reachable=state.reachable[..., index],
        server=torch.where(state.server >= 0, new_number[state.server.clamp_min(0)], -1),
        **{name: getattr(state, name)[:, index] for name in SERVER_FIELDS},
    )
    here, there = allocator(state, server), allocator(renamed, new_number[server])
    assert torch.equal(there.server, new_number[here.server])
    same(here, Decision(**{**vars(there), "server": here.server}), state.has_request)


@pytest.mark.parametrize("bandwidth", BANDWIDTH)
def test_network_is_allocated_as_it_would_be_alone(
    make_state: MakeState, physics: Physics, bandwidth: str
) -> None:
    state = in_float64(make_state(6, 5, 3, seed=8))
    allocator = Allocator(AllocationConfig.model_validate({"bandwidth": bandwidth}), physics)
    together = allocator(state, choose(state))
    for network in range(6):
        row = torch.tensor([network])
        alone = allocator(state.select(row), choose(state)[row])
        torch.testing.assert_close(together.bandwidth_hz[row], alone.bandwidth_hz)
