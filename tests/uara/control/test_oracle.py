"""The one-slot oracle: nothing that rules decide is better, and what it returns is what it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.control.allocation import JOINT, AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.objective import total_remaining_s
from uara.control.oracle import Associations, OneSlotOracle
from uara.errors import UserError
from uara.network import Controller, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, predict

MakeState = Callable[..., NetworkState]


def rules_are_never_better(
    state: NetworkState, physics: Physics, seed: int, splits: Iterable[str]
) -> None:
    allocations = [AllocationConfig.model_validate({"bandwidth": split}) for split in splits]
    oracle = OneSlotOracle(AllocationConfig(), physics, allocations)
    least = oracle.search(state).total_remaining_s
    for rule, config in itertools.product(ASSOCIATION_RULES.values(), oracle.allocations):
        for length in ("argmin", 0, 3):
            allocator = Allocator(config.model_copy(update={"draft_length": length}), physics)
            server = rule(state, allocator, torch.Generator().manual_seed(seed))
            value = total_remaining_s(state, allocator(state, server), physics)
            assert (least <= value * (1 + 1e-5)).all()


@settings(max_examples=4)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 3))
def test_no_rule_is_below_the_oracle(
    make_state: MakeState, physics: Physics, seed: int, devices: int, servers: int
) -> None:
    state = make_state(3, devices, servers, seed=seed)
    rules_are_never_better(state, physics, seed, ("square_root", "equal"))


@pytest.mark.slow
@settings(max_examples=6)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_no_rule_is_ever_below_the_oracle(
    make_state: MakeState, physics: Physics, seed: int, devices: int, servers: int, fresh: bool
) -> None:
    state = make_state(3, devices, servers, seed=seed, fresh=fresh)
    splits = [rule for rule in BANDWIDTH_RULES if rule != JOINT]
    rules_are_never_better(state, physics, seed, splits)


def test_the_value_is_that_of_the_decision(make_state: MakeState, physics: Physics) -> None:
    state = make_state(2, 3, 2, seed=3, waiting_requests=2)
    result = OneSlotOracle(AllocationConfig(), physics).search(state)
    remaining_s = predict(state, result.decision, physics, "request").remaining_s
    # two wait behind each request, as long as it does
    expected = torch.tensor(
        [3 * remaining_s[b][state.has_request[b]].sum().item() for b in range(2)]
    )
    torch.testing.assert_close(result.total_remaining_s, expected)
    in_reach = state.reachable.gather(2, result.decision.server[..., None])[..., 0]
    assert in_reach[state.has_request].all()


def test_the_search_is_exhaustive_and_then_refines_lengths(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 2, 2, seed=12, fresh=True, reachable=True)
    config = AllocationConfig(bandwidth="equal")
    oracle = OneSlotOracle(config, physics, [config])
    by_hand = []
    for servers in itertools.product(range(2), repeat=2):
        server = torch.tensor([servers])
        for length in range(9):
            allocator = Allocator(config.model_copy(update={"draft_length": length}), physics)
            value = total_remaining_s(state, allocator(state, server), physics)
            by_hand.append(value.item())
    found = oracle.search(state)
    assert found.total_remaining_s.item() <= min(by_hand) * (1 + 1e-6)
    for device, length in itertools.product(range(2), range(9)):
        lengths = found.decision.draft_length.clone()
        lengths[0, device] = length
        changed = type(found.decision)(
            found.decision.server, found.decision.bandwidth_hz, found.decision.power_w, lengths
        )
        value = total_remaining_s(state, changed, physics)
        assert found.total_remaining_s.item() <= value.item() * (1 + 1e-6)


def test_sets_of_devices_add_up_to_networks(make_state: MakeState, physics: Physics) -> None:
    state = make_state(4, 3, 3, seed=21)
    oracle = OneSlotOracle(AllocationConfig(), physics, [AllocationConfig(bandwidth="least_sum")])
    by_sets, by_networks = oracle._by_sets(state)[1], oracle._by_networks(state)[1]
    torch.testing.assert_close(by_sets, by_networks, rtol=1e-5, atol=1e-4)


def test_every_association_is_listed_once(make_state: MakeState) -> None:
    state = make_state(
        2, 3, 3, phase=[[Phase.DECODING, Phase.IDLE, Phase.UPLOADING], [Phase.DECODING] * 3],
        reachable=[[[True, False, True], [True] * 3, [True] * 3], [[True, False, False]] * 3],
    )  # fmt: skip
    found: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}
    for network, server in Associations.of(state).chunks(4):
        for b, row in zip(network.tolist(), server.tolist(), strict=True):
            found[b].append(tuple(row))
    idle = int(state.gain[0, 1].argmax())
    assert sorted(found[0]) == [(a, idle, c) for a in (0, 2) for c in (0, 1, 2)]
    assert found[1] == [(0, 0, 0)]


def test_too_many_associations_are_refused(make_state: MakeState, physics: Physics) -> None:
    oracle = OneSlotOracle(AllocationConfig(), physics, most_associations=80)
    oracle.decide(make_state(1, 3, 4))
    with pytest.raises(UserError, match=r"3\^4; at most 80 are allowed"):
        oracle.decide(make_state(1, 4, 3))


def test_the_oracle_is_a_controller_that_names_its_search_set() -> None:
    oracle = OneSlotOracle(AllocationConfig(), Physics.of(PhysicsConfig(max_draft_length=5)))
    assert isinstance(oracle, Controller)
    assert (oracle.name, oracle.observes) == ("oracle", "network")
    assert "equal" in oracle.search_set
    assert "0 to 5" in oracle.search_set
