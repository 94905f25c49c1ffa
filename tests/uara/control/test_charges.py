"""What a server costs beyond time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.charges import Charges, airtime_s, memory_wait_s, outlasts
from uara.network import NetworkState, Phase
from uara.prediction import Physics, predict

MakeState = Callable[..., NetworkState]


def test_outlasting_follows_two_equal_exponential_stages() -> None:
    mean_s, limit_s = torch.tensor([4.0, 10.0, 3.0]), torch.tensor([5.0, 2.0, math.inf])
    for mean, limit, found in zip(mean_s, limit_s, outlasts(mean_s, limit_s), strict=True):
        stage = mean.double() / 2
        first_s = torch.linspace(0, 40 * float(stage), 100_001, dtype=torch.double)
        # The first stage ends somewhere; the second one must last for the rest.
        survives = torch.exp(-(limit - first_s).clamp_min(0) / stage)
        wanted = torch.trapezoid(torch.exp(-first_s / stage) / stage * survives, first_s)
        assert found.item() == pytest.approx(wanted.item(), abs=1e-4)


def test_airtime_is_bits_over_the_rate_of_an_equal_share(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 2, 2, phase=Phase.DECODING, upload_bits=1e6, expected_remaining_tokens=50,
        acceptance=0.5, server=[[0, 1]], gain=1e-9, power_max_w=0.2, uplink_bandwidth_hz=1e6,
    )  # fmt: skip
    length = torch.full((1, 2), 2)
    # 1 + 0.5 + 0.25 tokens per round of two drafts.
    bits = 1e6 + 50 / 1.75 * physics.codec.draft_bits(2.0)
    link = physics.config.link

    def seconds(share_hz: float) -> float:
        snr = 1e-9 * 0.2 / (link.uplink_noise_w_per_hz * share_hz) / 10 ** (link.snr_gap_db / 10)
        return bits / (share_hz * min(math.log2(1 + snr), link.spectral_efficiency_max))

    # Alone where it is, beside the other one elsewhere.
    wanted = torch.tensor([[[seconds(1e6), seconds(5e5)], [seconds(5e5), seconds(1e6)]]])
    torch.testing.assert_close(airtime_s(state, length, physics), wanted, rtol=1e-4, atol=0)


def test_lost_cache_costs_its_prefill_elsewhere(make_state: MakeState, physics: Physics) -> None:
    state = make_state(
        1, 1, 2, phase=Phase.DECODING, upload_bits=0, prompt_tokens=4000, tokens_so_far=0,
        forward_per_token_s=[[1e-3, 3e-3]],
    ).with_(outage_in_s=torch.tensor([[1e-6, math.inf]]))  # fmt: skip
    allocator = Allocator(AllocationConfig(), physics)
    charges = Charges.of(state, allocator, seconds_per_joule=0.0, read_calendar=True)
    own_s = torch.tensor([[5.0, 5.0]])
    charged = charges.add(own_s, 0)[0].tolist()
    assert charged == pytest.approx([5 + 4000 * 2e-3, 5])


def test_without_price_and_outages_time_is_all(make_state: MakeState, physics: Physics) -> None:
    state, allocator = make_state(2, 3, 2), Allocator(AllocationConfig(), physics)
    assert Charges.of(state, allocator, seconds_per_joule=0.0, read_calendar=True).are_none
    soon = state.with_(outage_in_s=torch.full((2, 2), 3.0))
    assert Charges.of(soon, allocator, seconds_per_joule=0.0, read_calendar=False).are_none
    assert not Charges.of(soon, allocator, seconds_per_joule=0.0, read_calendar=True).are_none
    assert not Charges.of(state, allocator, seconds_per_joule=1.0, read_calendar=True).are_none


def test_full_server_costs_the_time_in_which_the_lacking_memory_is_given_back(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 2, 2, phase=[[Phase.DECODING, Phase.UPLOADING]], server=[[0, -1]],
        upload_bits=[[0, 1e5]], prompt_tokens=[[3000, 1500]], tokens_so_far=0,
        expected_remaining_tokens=100, kv_tokens=[[3000, 0]], waiting_requests=0,
        kv_free_tokens=[[1000, 1e5]],
    )  # fmt: skip
    allocator = Allocator(AllocationConfig(), physics)
    alone = state.with_(phase=torch.tensor([[int(Phase.DECODING), int(Phase.IDLE)]]))
    decision = allocator.quick(alone, torch.zeros(1, 2, dtype=torch.long))
    end_s = predict(alone, decision, physics, "request").remaining_s[0, 0].item()
    # 3,100 tokens come back by then; 600 of 1,600 are lacking.
    wanted = [[[0.0, 0.0], [600 / 3100 * end_s, 0.0]]]
    torch.testing.assert_close(memory_wait_s(state, allocator), torch.tensor(wanted))
    charges = Charges.of(state, allocator, wait_for_memory=True)
    charged = charges.add(torch.tensor([[5.0, 5.0]]), 1)[0].tolist()
    assert charged == pytest.approx([5 + wanted[0][1][0], 5])
