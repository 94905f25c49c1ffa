"""Power rules by what they promise: path loss made up for, deadlines met, interference spared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.control.bandwidth import square_root
from uara.control.power import PowerConfig, min_energy_deadline, open_loop, wmmse
from uara.control.wmmse import disturbed_uplinks, wmmse_steps
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, predict, uplink_rate_bps
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
REUSE1 = Physics.of(PhysicsConfig(link=LinkConfig(interference="reuse1")))
MCS = Physics.of(PhysicsConfig(link=LinkConfig(adaptation="mcs")))


def at_full_power(state: NetworkState, physics: Physics) -> Decision:
    server = state.gain.masked_fill(~state.reachable, 0).argmax(-1)
    length = torch.full_like(server, 4)
    bandwidth_hz = square_root(state, server, length, physics)
    return Decision(server, bandwidth_hz, state.power_max_w, length)


def test_open_loop_makes_up_for_a_share_of_the_path_loss(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 3, 1, gain=[[[1e-9], [1e-10], [1e-13]]], power_max_w=0.2)
    shares = torch.tensor([[180e3, 720e3, 720e3]])
    decision = replace(at_full_power(state, physics), bandwidth_hz=shares)
    config = PowerConfig(open_loop_p0_dbm=-80, open_loop_alpha=0.8)
    watts = open_loop(state, decision, physics, config)[0].tolist()
    in_dbm = [10 * math.log10(1e3 * w) for w in watts]
    expected = [-80 + 0.8 * 90, -80 + 0.8 * 100 + 10 * math.log10(4), 10 * math.log10(200)]
    assert in_dbm == pytest.approx(expected, abs=1e-4)  # the last is at its limit


@pytest.mark.parametrize("adaptation", ["shannon", "mcs"])
@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_least_power_meets_the_deadline_and_less_does_not(
    make_state: MakeState, physics: Physics, adaptation: str, seed: int
) -> None:
    physics = MCS if adaptation == "mcs" else physics
    state = make_state(4, 4, 2, seed=seed)
    decision, config = at_full_power(state, physics), PowerConfig()
    power_w = min_energy_deadline(state, decision, physics, config)
    bits = physics.codec.draft_bits(torch.full_like(state.age_s, 4))
    left_s = (config.upload_deadline_s - state.age_s).clamp_min(1e-9)
    needed_bps = torch.where(
        state.upload_bits > 0, state.upload_bits / left_s, bits / config.draft_deadline_s
    )
    sends = state.has_request & (decision.bandwidth_hz > 0)

    def meets(watts: torch.Tensor) -> torch.Tensor:
        rate = uplink_rate_bps(state, replace(decision, power_w=watts), physics)
        return rate >= needed_bps * (1 - 1e-4)

    can = sends & meets(state.power_max_w)
    assert meets(power_w)[can].all()
    assert not (meets(0.95 * power_w) & can).any()
    assert (power_w <= state.power_max_w).all()


def test_no_power_is_spent_beyond_the_best_rate(make_state: MakeState, physics: Physics) -> None:
    # A late prompt on a link of 60 dB: the cap of 5.55 bit/s/Hz needs less than the limit.
    state = make_state(1, 1, 1, phase=Phase.UPLOADING, upload_bits=8e6, age_s=60, gain=1e-8,
                       power_max_w=0.2, uplink_bandwidth_hz=1e5)  # fmt: skip
    decision = at_full_power(state, physics)
    power_w = min_energy_deadline(state, decision, physics, PowerConfig())
    assert power_w.item() < 0.01
    rates = [
        uplink_rate_bps(state, replace(decision, power_w=watts), physics).item()
        for watts in (power_w, state.power_max_w)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


def test_full_power_is_the_limit_of_wmmse_without_interference(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(3, 4, 2)
    power_w = wmmse(state, at_full_power(state, physics), physics, PowerConfig())
    assert torch.equal(power_w, state.power_max_w)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_no_step_of_wmmse_lowers_the_weighted_rates(make_state: MakeState, seed: int) -> None:
    state = make_state(4, 6, 3, seed=seed, fresh=True)
    decision = at_full_power(state, REUSE1)
    links = disturbed_uplinks(state, decision, REUSE1, torch.ones_like(state.age_s))
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(4, 6, generator=draw, dtype=torch.float64)
    power_w, last = links.power_max_w, None
    for _ in range(8):
        total = (weight * links.rate_bps(power_w, capped=False)).sum(1)
        assert last is None or (total >= last * (1 - 1e-12)).all()
        last, power_w = total, wmmse_steps(links, weight, power_w, 1)
        assert (power_w <= links.power_max_w * (1 + 1e-12)).all()


def crossed_uploads(make_state: MakeState) -> NetworkState:
    """Two servers between which a near device and one at the edge disturb each other."""
    return make_state(
        1, 2, 2, fresh=True, reachable=True, upload_bits=4e6, power_max_w=0.2,
        gain=[[[1e-8, 5e-9], [1e-12, 5e-11]]], uplink_bandwidth_hz=1e6, rtt_s=0.02,
    )  # fmt: skip


def test_wmmse_is_faster_than_full_power_where_links_disturb_each_other(
    make_state: MakeState,
) -> None:
    state = crossed_uploads(make_state)
    full = at_full_power(state, REUSE1)
    power_w = wmmse(state, full, REUSE1, PowerConfig())
    assert (power_w[0, 0] / full.power_w[0, 0]).item() < 0.5  # the near one spares the other
    upload_s = [
        predict(state, replace(full, power_w=watts), REUSE1, "request").upload_s.sum().item()
        for watts in (power_w, full.power_w)
    ]
    assert upload_s[0] < 0.8 * upload_s[1]


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_wmmse_never_sends_more_slowly_in_all_than_full_power(
    make_state: MakeState, seed: int
) -> None:
    state = make_state(4, 6, 3, seed=seed, fresh=True)
    full = at_full_power(state, REUSE1)
    power_w = wmmse(state, full, REUSE1, PowerConfig())
    upload_s = [
        predict(state, replace(full, power_w=watts), REUSE1, "request").upload_s.sum(1)
        for watts in (power_w, full.power_w)
    ]
    assert (upload_s[0] <= upload_s[1] * (1 + 1e-3)).all()
