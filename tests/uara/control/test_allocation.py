"""Draft lengths against a search by hand, and the allocation that is made of the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.draft_length import argmin, fixed
from uara.control.power import PowerConfig, full
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict

MakeState = Callable[..., NetworkState]


def with_length(state: NetworkState, length: int) -> Decision:
    return Decision(
        server=torch.zeros_like(state.server),
        bandwidth_hz=torch.full_like(state.age_s, 2e5),
        power_w=state.power_max_w,
        draft_length=torch.full_like(state.server, length),
    )


def test_argmin_is_the_best_length_of_a_device_alone(
    make_state: MakeState, physics: Physics
) -> None:
    networks = make_state(60, 1, 1, seed=6, fresh=True)
    found = argmin(networks, with_length(networks, 3), physics)
    for network in range(60):
        alone = networks.select(torch.tensor([network]))
        tpot_s = [
            predict(alone, with_length(alone, length), physics, "request").tpot_s.item()
            for length in range(physics.config.max_draft_length + 1)
        ]
        assert tpot_s[found[network]] == pytest.approx(min(tpot_s), rel=1e-6)
    assert len(found.unique()) > 4  # the networks differ in what is best


def test_longer_drafts_for_those_that_are_accepted_more_often(
    make_state: MakeState, physics: Physics
) -> None:
    length = []
    for acceptance in (0.05, 0.6, 0.95):
        state = make_state(1, 1, 1, fresh=True, acceptance=acceptance, gain=1e-9)
        length.append(argmin(state, with_length(state, 3), physics).item())
    assert length == sorted(length)
    assert length[0] < length[1] < length[2]


def test_hopeless_draft_hands_the_request_to_the_server(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 1, 1, fresh=True, acceptance=0.02, gain=1e-14, rtt_s=0.1)
    assert argmin(state, with_length(state, 3), physics).item() == 0


def test_fixed_length_and_full_power(make_state: MakeState, physics: Physics) -> None:
    state = make_state(2, 3, 2)
    assert fixed(state, 5).tolist() == [[5] * 3] * 2
    power_w = full(state, with_length(state, 5), physics, PowerConfig())
    assert torch.equal(power_w, state.power_max_w)


def test_allocator_keeps_the_servers_and_sets_the_rest(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(4, 3, 2, seed=8)
    server = torch.randint(2, (4, 3), generator=torch.Generator().manual_seed(0))
    decision = Allocator(AllocationConfig(draft_length=2), physics)(state, server)
    assert torch.equal(decision.server, server)
    assert torch.equal(decision.power_w, state.power_max_w)
    assert (decision.draft_length == 2).all()
    quick = Allocator(AllocationConfig(search_length=6), physics).quick(state, server)
    assert (quick.draft_length == 6).all()


def test_searched_length_is_the_one_that_the_bandwidth_is_made_for(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(4, 3, 2, seed=8)
    allocator = Allocator(AllocationConfig(), physics)
    server = torch.zeros(4, 3, dtype=torch.long)
    decision = allocator(state, server)
    length = argmin(state, allocator.quick(state, server), physics)
    assert torch.equal(decision.draft_length, length)
    total_hz = (decision.bandwidth_hz * state.has_request).sum(1)
    torch.testing.assert_close(
        total_hz, torch.where(state.has_request.any(1), state.uplink_bandwidth_hz[:, 0], 0.0)
    )


def test_negative_length_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        AllocationConfig(draft_length=-1)


def test_length_beyond_the_longest_is_refused(physics: Physics) -> None:
    with pytest.raises(UserError, match=r"draft_length is 9 but .* at most 8"):
        Allocator(AllocationConfig(draft_length=9), physics)
