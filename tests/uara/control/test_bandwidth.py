"""Splits of a band: equal, and the square root against a generic optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from uara.control.bandwidth import (
    BANDWIDTH_RULES,
    BandwidthRule,
    demand,
    equal,
    equal_finish,
    goodput,
    least_sum,
    proportional_fair,
    split_band,
    square_root,
)
from uara.control.request_work import RequestWork, request_work
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, uplink_rate_bps
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]


def test_equal_gives_each_request_on_a_server_the_same(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 4, 2, phase=[[Phase.DECODING, Phase.IDLE, Phase.UPLOADING, Phase.UPLOADING]],
        uplink_bandwidth_hz=[[1e6, 3e6]],
    )  # fmt: skip
    server = torch.tensor([[0, 0, 0, 1]])
    given = equal(state, server, torch.full((1, 4), 4), physics)
    assert given.tolist() == [[5e5, 0, 5e5, 3e6]]


def test_band_is_split_in_proportion_to_the_weights(make_state: MakeState) -> None:
    state = make_state(1, 3, 2, uplink_bandwidth_hz=[[1e6, 2e6]])
    split = split_band(torch.tensor([[1.0, 3.0, 7.0]]), state, torch.tensor([[0, 0, 1]]))
    assert split.tolist() == [[2.5e5, 7.5e5, 2e6]]


def test_band_without_weights_stays_unused(make_state: MakeState) -> None:
    split = split_band(torch.zeros(1, 3), make_state(1, 3, 2), torch.zeros(1, 3, dtype=torch.long))
    assert split.tolist() == [[0, 0, 0]]


def remaining_cost(state: NetworkState, physics: Physics, gamma: int) -> np.ndarray:
    """Reckon remaining uplink bits over bit/s/Hz at the equal share, one network, one server."""
    cost = []
    for device in range(state.num_devices):
        share_hz = state.uplink_bandwidth_hz[0, 0].item() / state.num_devices
        noise_w = 10 ** ((-174 + 5 - 30) / 10) * share_hz
        power_w = state.gain[0, device, 0].item() * state.power_max_w[0, device].item()
        efficiency = min(5.55, math.log2(1 + power_w / noise_w / 10**0.3))
        acceptance = state.acceptance[0, device].item()
        tokens = sum(acceptance**k for k in range(gamma + 1))
        rounds = state.expected_remaining_tokens[0, device].item() / tokens
        bits = state.upload_bits[0, device].item() + rounds * physics.codec.draft_bits(float(gamma))
        cost.append(bits / efficiency)
    return np.array(cost)


@pytest.mark.parametrize("seed", range(6))
def test_square_root_minimises_the_sum_of_remaining_uplink_times(
    make_state: MakeState, physics: Physics, seed: int
) -> None:
    devices = 2 + seed
    state = make_state(1, devices, 1, seed=seed, fresh=True)
    band_hz = state.uplink_bandwidth_hz.item()
    cost = remaining_cost(state, physics, 4)
    scale = cost.sum() * devices / band_hz

    def total(share: np.ndarray) -> float:
        return float((cost / (share * band_hz)).sum() / scale)

    numerical = minimize(
        total,
        np.full(devices, 1 / devices),
        bounds=[(1e-4, 1)] * devices,
        constraints={"type": "eq", "fun": lambda share: share.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    given = square_root(state, torch.zeros(1, devices).long(), torch.full((1, devices), 4), physics)
    share = given[0].double().numpy() / band_hz
    assert share.sum() == pytest.approx(1, rel=1e-6)
    assert total(share) == pytest.approx(numerical.fun, rel=1e-6)
    assert total(share) < total(np.full(devices, 1 / devices))


def test_square_root_does_not_look_at_devices_without_a_request(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 3, 1, phase=[[Phase.UPLOADING, Phase.IDLE, Phase.UPLOADING]], gain=1e-10,
        upload_bits=[[1e6, 9e9, 1e6]], expected_remaining_tokens=10, acceptance=0.7,
        power_max_w=0.2, uplink_bandwidth_hz=1e6,
    )  # fmt: skip
    length = torch.full((1, 3), 4)
    given = square_root(state, torch.zeros_like(length), length, physics)
    torch.testing.assert_close(given, torch.tensor([[5e5, 0, 5e5]]))


def test_request_with_nothing_to_send_gets_nothing(make_state: MakeState, physics: Physics) -> None:
    state = make_state(1, 2, 1, phase=Phase.DECODING, upload_bits=[[0, 1e6]])
    given = square_root(state, torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), physics)
    assert given[0, 0] == 0
    torch.testing.assert_close(given[0, 1], state.uplink_bandwidth_hz[0, 0])


# The exact rules, on whole states.


def here(state: NetworkState) -> tuple[torch.Tensor, torch.Tensor]:
    """Put everybody on the first server with drafts of 4."""
    return torch.zeros_like(state.phase), torch.full_like(state.phase, 4)


def rates_bps(
    state: NetworkState, bandwidth_hz: torch.Tensor, physics: Physics
) -> tuple[torch.Tensor, RequestWork]:
    server, length = here(state)
    decision = Decision(server, bandwidth_hz, state.power_max_w, length)
    at_equal = Decision(server, equal(state, server, length, physics), state.power_max_w, length)
    return uplink_rate_bps(state, decision, physics), request_work(state, at_equal, physics)


def test_equal_finish_ends_all_requests_together(make_state: MakeState, physics: Physics) -> None:
    state = make_state(20, 5, 1, seed=3, fresh=True, gain=torch.logspace(-12, -9, 5)[:, None])
    rate_bps, work = rates_bps(state, equal_finish(state, *here(state), physics), physics)
    end_s = work.other_s + work.bits / rate_bps
    torch.testing.assert_close(
        end_s, end_s.amax(1, keepdim=True).expand_as(end_s), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("rule", [equal, demand, square_root, equal_finish, goodput])
def test_no_rule_has_a_smaller_sum_of_upload_times_than_least_sum(
    make_state: MakeState, physics: Physics, rule: BandwidthRule
) -> None:
    state = make_state(60, 5, 1, seed=3, fresh=True)

    def total_s(split: BandwidthRule) -> torch.Tensor:
        rate_bps, work = rates_bps(state, split(state, *here(state), physics), physics)
        return (work.bits / rate_bps).sum(1)

    ratio = total_s(rule) / total_s(least_sum)
    assert (ratio > 1 - 1e-5).all()
    assert ratio.max() > 1.001


def test_exact_rules_have_their_closed_forms_where_efficiencies_are_fixed(
    make_state: MakeState, physics: Physics
) -> None:
    # Strong links: all are at the cap of 5.55 bit/s/Hz whatever their bandwidth. The first request
    # asks for much and gives little.
    state = make_state(10, 4, 1, seed=7, fresh=True, gain=1e-4, uplink_bandwidth_hz=1e6)
    state.upload_bits[:, 0], state.expected_remaining_tokens[:, 0] = 1e8, 1
    where, band_hz = here(state), state.uplink_bandwidth_hz

    def split(rule: BandwidthRule) -> torch.Tensor:
        return rule(state, *where, physics) / band_hz

    _, work = rates_bps(state, equal(state, *where, physics), physics)
    c, a = work.bits / (5.55 * band_hz), work.other_s
    torch.testing.assert_close(split(least_sum), split(square_root), rtol=1e-4, atol=0)
    torch.testing.assert_close(split(proportional_fair), split(equal), rtol=1e-5, atol=0)
    torch.testing.assert_close(split(demand), c / c.sum(1, keepdim=True), rtol=1e-5, atol=0)
    end_s = a + c / split(equal_finish)
    torch.testing.assert_close(end_s, end_s[:, :1].expand_as(end_s), rtol=1e-4, atol=0)
    # b = max(0, sqrt(E c / mu) - c) / a: (a b + c) / sqrt(E c) is one number for all with a band.
    b = split(goodput)
    level = (a * b + c) / (work.tokens * c).sqrt()
    for network in range(10):
        has = b[network] > 0
        levels = level[network]
        torch.testing.assert_close(
            levels[has], levels[has].mean().expand(int(has.sum())), rtol=1e-4, atol=0
        )
        assert (levels[~has] >= levels[has].min() * (1 - 1e-4)).all()
    assert (b[:, 0] == 0).all()


def test_hopeless_link_gets_no_more_than_helps_it(make_state: MakeState, physics: Physics) -> None:
    # Far below the noise at any width: fixed bit/s/Hz would give it nearly the whole band.
    gain = torch.tensor([1e-10, 1e-10, 1e-18]).unsqueeze(-1)
    state = make_state(
        1, 3, 1, phase=Phase.UPLOADING, upload_bits=1e6, gain=gain, power_max_w=0.2,
        expected_remaining_tokens=10, acceptance=0.7, uplink_bandwidth_hz=1e6,
    )  # fmt: skip
    fixed, exact = (rule(state, *here(state), physics)[0, 2] for rule in (square_root, least_sum))
    assert exact < fixed / 2


@pytest.mark.parametrize("name", sorted(set(BANDWIDTH_RULES) - {"equal", "demand"}))
def test_no_link_of_the_tables_is_spread_to_death(make_state: MakeState, name: str) -> None:
    physics = Physics.of(PhysicsConfig(link=LinkConfig(adaptation="mcs")))
    # The last two are too weak for a quarter of the band; the last for any width.
    gain = torch.tensor([[1e-9, 1e-11, 4e-15, 1e-19]]).unsqueeze(-1)
    state = make_state(1, 4, 1, gain=gain, phase=Phase.UPLOADING, upload_bits=1e6, power_max_w=0.2,
                       uplink_bandwidth_hz=1e6)  # fmt: skip
    server, length = torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), 4)
    given = BANDWIDTH_RULES[name](state, server, length, physics)
    shared = equal(state, server, length, physics)

    def alive(hertz: torch.Tensor) -> list[bool]:
        decision = Decision(server, hertz, state.power_max_w, length)
        return (uplink_rate_bps(state, decision, physics) > 1)[0].tolist()

    assert alive(shared) == [True, True, False, False]
    assert alive(given) == [True, True, True, False]
    assert given.sum().item() == pytest.approx(1e6)
    assert (given > 0).all()
