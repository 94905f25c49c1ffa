"""Costs of placements against predictions of whole networks, and compiled code against torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.native_cost import NativeCost, knows
from uara.control.server_cost import PredictedCost, ServerCost, server_cost, take_devices
from uara.network import NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, predict
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
NETWORKS, DEVICES, SERVERS = 12, 7, 3
LENGTHS = pytest.mark.parametrize("length", [0, 4])
PHYSICS = {
    "sd": PhysicsConfig(),
    "server_ar": PhysicsConfig(mode="server_ar"),
    "ids": PhysicsConfig(codec="ids"),
    "psd": PhysicsConfig(mode="psd"),
    "device_only": PhysicsConfig(mode="device_only"),
    "fluid": PhysicsConfig(service="fluid"),
    "mcs": PhysicsConfig(link=LinkConfig(adaptation="mcs")),
    "reuse1": PhysicsConfig(link=LinkConfig(interference="reuse1")),
}
COMPILED = ("sd", "server_ar", "ids")


@pytest.fixture(scope="module")
def busy(make_state: MakeState) -> NetworkState:
    """Networks in the middle of things, also with requests of others and queues at devices."""
    draw = torch.Generator().manual_seed(4)

    def counts(most: int, *shape: int) -> Tensor:
        return torch.randint(most + 1, shape, generator=draw)

    each, at = (NETWORKS, DEVICES), (NETWORKS, SERVERS)
    return make_state(
        *each, SERVERS, seed=9, waiting_requests=counts(2, *each), foreign_rows=counts(2, *at),
        foreign_prefill_tokens=500 * counts(1, *at),
    )  # fmt: skip


@pytest.fixture(scope="module")
def placement() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    server = torch.randint(SERVERS, (NETWORKS, DEVICES), generator=draw)
    return server, torch.rand(NETWORKS, DEVICES, generator=draw) < 0.8


def allocator_of(physics: str, **config: object) -> Allocator:
    return Allocator(AllocationConfig(**config), Physics.of(PHYSICS[physics]))  # type: ignore[arg-type]


def forms(state: NetworkState, allocator: Allocator) -> list[ServerCost]:
    """Make both forms where there are two."""
    both: list[ServerCost] = [PredictedCost(state, allocator)]
    return [*both, NativeCost.of(state, allocator)] if knows(state, allocator) else both


def by_whole_networks(
    state: NetworkState, server: Tensor, placed: Tensor, allocator: Allocator
) -> Tensor:
    """Predict the remaining times (B, M) of a placement, the others taken away."""
    exists = placed & state.has_request
    view = state.with_(phase=torch.where(exists, state.phase, int(Phase.IDLE)))
    seconds = predict(view, allocator.quick(view, server), allocator.physics, "request").remaining_s
    return torch.where(exists, seconds, 0.0)


@LENGTHS
@pytest.mark.parametrize("bandwidth", ["equal", "square_root"])
@pytest.mark.parametrize("physics", COMPILED)
def test_compiled_times_are_those_of_the_prediction(
    busy: NetworkState,
    placement: tuple[Tensor, Tensor],
    physics: str,
    bandwidth: str,
    length: int,
) -> None:
    allocator = allocator_of(physics, bandwidth=bandwidth, draft_length=length)
    found = NativeCost.of(busy, allocator).remaining_s(*placement)
    expected = by_whole_networks(busy, *placement, allocator)
    assert (expected > 0).sum() > 20
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compiled_times_count_caches_that_come_over_the_backhaul(
    busy: NetworkState, placement: tuple[Tensor, Tensor]
) -> None:
    moving = busy.with_(
        kv_arriving_tokens=torch.full_like(busy.kv_tokens, 300.0),
        kv_transfer_s=torch.full_like(busy.rtt_s, 1e-3),
    )
    allocator = allocator_of("sd")
    found = NativeCost.of(moving, allocator).remaining_s(*placement)
    torch.testing.assert_close(found, by_whole_networks(moving, *placement, allocator))
    assert not torch.allclose(found, by_whole_networks(busy, *placement, allocator), rtol=1e-2)


@pytest.mark.parametrize("physics", PHYSICS)
def test_joining_costs_what_the_whole_network_then_costs(
    busy: NetworkState, placement: tuple[Tensor, Tensor], physics: str
) -> None:
    server, placed = placement
    allocator = allocator_of(physics)
    device = busy.has_request.long().argmax(1)
    rows = busy.has_request.any(1)
    for cost in forms(busy, allocator):
        others_s, own_s = cost.join_s(server, placed, device)
        for choice in range(SERVERS):
            joined = server.scatter(1, device[:, None], choice)
            with_it = placed.scatter(1, device[:, None], True)
            seconds = by_whole_networks(busy, joined, with_it, allocator)
            own = seconds.gather(1, device[:, None])
            others = seconds * (1 + busy.waiting_requests)
            others = others.scatter(1, device[:, None], 0.0).sum(1)
            torch.testing.assert_close(own_s[rows, choice], own[rows, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(others_s[rows, choice], others[rows], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"harm_weight": 0.0}, {"margin_s": 3.0}])
def test_both_forms_relocate_alike(
    busy: NetworkState, placement: tuple[Tensor, Tensor], options: dict[str, float]
) -> None:
    order = torch.rand(NETWORKS, DEVICES, generator=torch.Generator().manual_seed(2)).argsort(1)
    (torch_server, torch_moved), (server, moved) = (
        cost.relocate(*placement, order, busy.reachable, **options)
        for cost in forms(busy, allocator_of("sd"))
    )
    assert torch.equal(server, torch_server)
    assert torch.equal(moved, torch_moved)
    assert moved.sum() > 10


def test_both_forms_swap_alike_and_swaps_help(busy: NetworkState) -> None:
    server = torch.arange(DEVICES).remainder(SERVERS).expand(NETWORKS, -1)
    order = torch.arange(DEVICES).flip(0).expand(NETWORKS, -1)
    allocator = allocator_of("sd")
    found = [cost.swap(server, order, busy.reachable) for cost in forms(busy, allocator)]
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1].sum() > 10
    before, after = (
        (by_whole_networks(busy, s, busy.has_request, allocator) * (1 + busy.waiting_requests))
        for s in (server, found[1][0])
    )
    assert (after.sum(1) <= before.sum(1) * (1 + 1e-6)).all()
    assert after.sum() < before.sum()
    # Swaps leave as many on each server, and nobody out of reach who was in reach.
    for one, other in itertools.pairwise((server, found[1][0])):
        assert torch.equal(
            one.where(busy.has_request, -1).sort(1)[0], other.where(busy.has_request, -1).sort(1)[0]
        )


def test_a_margin_keeps_devices_where_they_are(busy: NetworkState) -> None:
    server = busy.reachable.float().argmax(-1)
    order = torch.arange(DEVICES).expand(NETWORKS, -1)
    for cost in forms(busy, allocator_of("sd")):
        _, moved = cost.relocate(server, busy.has_request, order, busy.reachable, margin_s=1e6)
        assert not moved.any()


def test_compiled_code_is_taken_where_it_knows_the_physics(busy: NetworkState) -> None:
    for physics in PHYSICS:
        cost = server_cost(busy, allocator_of(physics))
        assert isinstance(cost, NativeCost) == (physics in COMPILED), physics
    assert isinstance(server_cost(busy, allocator_of("sd"), native=False), PredictedCost)


def test_a_view_takes_every_field_of_its_devices(busy: NetworkState) -> None:
    full = busy.with_(
        battery_j=torch.rand_like(busy.age_s), kv_arriving_tokens=torch.rand_like(busy.age_s)
    )
    order = torch.tensor([[3, 3, 0, 6, 5]]).expand(NETWORKS, -1)
    view = take_devices(full, order)
    for field in fields(NetworkState):
        value, taken = getattr(full, field.name), getattr(view, field.name)
        if value is None:
            continue
        per_device = value.dim() > 1 and value.shape[1] == DEVICES
        assert torch.equal(taken, value[:, order[0]] if per_device else value), field.name
