"""Joint one-slot controllers: between their rule and the oracle, and close to the oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig
from uara.control.joint import neighbours
from uara.control.objective import total_remaining_s
from uara.control.oracle import OneSlotOracle
from uara.control.registry import make_controller
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
JOINT = {"joint_greedy": "greedy_latency", "joint_moves": "tma_moves"}


def value(name: str, state: NetworkState, physics: Physics) -> Tensor:
    """Let a controller decide, and predict the objective of its decision, (B,)."""
    controller = make_controller(name, AllocationConfig(), physics)
    everyone = torch.ones(state.num_networks, dtype=torch.bool)
    controller.reset(everyone, torch.Generator().manual_seed(0))
    decision = controller.decide(state)
    in_reach = state.reachable.gather(2, decision.server[..., None])[..., 0]
    assert in_reach[state.has_request].all()
    return total_remaining_s(state, decision, physics)


@pytest.mark.parametrize(("interference", "devices"), [("orthogonal", 3), ("reuse1", 2)])
def test_they_end_between_their_rule_and_the_oracle(
    interference: str, devices: int, make_state: MakeState
) -> None:
    link = LinkConfig(interference=interference)  # type: ignore[arg-type]
    physics = Physics.of(PhysicsConfig(link=link))
    state = make_state(5, devices, 2, seed=17)
    least = OneSlotOracle(AllocationConfig(), physics).search(state).total_remaining_s
    for name, rule in JOINT.items():
        found = value(name, state, physics)
        assert (least <= found * (1 + 1e-5)).all()
        assert (found <= value(rule, state, physics) * (1 + 1e-5)).all()


@pytest.mark.slow
def test_they_are_close_to_the_oracle(make_drops: MakeState, physics: Physics) -> None:
    state = make_drops(60, 7, 3, 50)
    least = OneSlotOracle(AllocationConfig(), physics).search(state).total_remaining_s
    for name, most in (("joint_greedy", 0.01), ("joint_moves", 0.005)):
        gap = (value(name, state, physics) / least - 1).mean()
        assert 0 <= gap < most


def test_neighbours_are_one_move_or_swap_away(make_state: MakeState) -> None:
    state = make_state(6, 4, 3, seed=4)
    has, server = state.has_request, state.gain.argmax(-1)
    network, tried = neighbours(state, server)
    for b in range(6):
        found = {tuple(row) for row in tried[network == b].tolist()}
        expected = set()
        for other in itertools.product(range(3), repeat=4):
            moved = [i for i in range(4) if other[i] != server[b, i]]
            reach = all(state.reachable[b, i, other[i]] for i in range(4) if has[b, i])
            swaps = len(moved) == 2 and all(
                other[i] == server[b, k] for i, k in (moved, moved[::-1])
            )
            if reach and any(has[b, i] for i in moved) and (len(moved) == 1 or swaps):
                expected.add(other)
        requests_only = {
            row for row in expected if all(has[b, i] or row[i] == server[b, i] for i in range(4))
        }
        assert requests_only <= found <= expected
