"""Splits of a band: equal, and the square root against a generic optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from uara.control.bandwidth import equal, split_band, square_root
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


def test_no_link_of_the_tables_is_spread_to_death(make_state: MakeState) -> None:
    physics = Physics.of(PhysicsConfig(link=LinkConfig(adaptation="mcs")))
    # The last two are too weak for a quarter of the band; the last for any width.
    gain = torch.tensor([[1e-9, 1e-11, 4e-15, 1e-19]]).unsqueeze(-1)
    state = make_state(1, 4, 1, gain=gain, phase=Phase.UPLOADING, upload_bits=1e6, power_max_w=0.2,
                       uplink_bandwidth_hz=1e6)  # fmt: skip
    server, length = torch.zeros(1, 4, dtype=torch.long), torch.full((1, 4), 4)
    given = square_root(state, server, length, physics)
    shared = equal(state, server, length, physics)

    def alive(hertz: torch.Tensor) -> list[bool]:
        decision = Decision(server, hertz, state.power_max_w, length)
        return (uplink_rate_bps(state, decision, physics) > 1)[0].tolist()

    assert alive(shared) == [True, True, False, False]
    assert alive(given) == [True, True, True, False]
    assert given.sum().item() == pytest.approx(1e6)
    assert (given > 0).all()
