"""What the tests of controllers share: drops of devices around sites, and what a choice costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.network import NetworkState
from uara.prediction import predict

MakeState = Callable[..., NetworkState]


@pytest.fixture(scope="session")
def make_drops(make_state: MakeState) -> MakeState:
    """Drop devices and sites on a square (3GPP TR 38.901 UMi without line of sight)."""

    def make(num: int, devices: int, servers: int, seed: int) -> NetworkState:
        draw = torch.Generator().manual_seed(seed)

        def between(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=draw)

        half_m = 150 * math.sqrt(servers)
        site = between(-half_m, half_m, num, 1, servers, 2)
        place = between(-half_m, half_m, num, devices, 1, 2)
        distance_m = (site - place).norm(dim=-1).clamp_min(10)
        shadowing_db = 7 * torch.randn(num, devices, servers, generator=draw)
        indoor_db = 20 * (torch.rand(num, devices, 1, generator=draw) < 0.4)
        loss_db = 32.4 + 20 * math.log10(3.5) + 31.9 * distance_m.log10()
        is_photo = torch.rand(num, devices, generator=draw) < 0.3
        return make_state(
            num, devices, servers, fresh=True, reachable=True, seed=seed,
            gain=10 ** ((shadowing_db - loss_db - indoor_db) / 10),
            expected_remaining_tokens=between(60, 100, num, devices),
            acceptance=between(0.6, 0.85, num, devices),
            upload_bits=torch.where(is_photo, 8e6, 6e4),
            waiting_requests=torch.randint(0, 2, (num, devices), generator=draw),
            uplink_bandwidth_hz=3e5 * devices / servers, downlink_bandwidth_hz=1e7 / servers,
            power_max_w=0.2, rtt_s=0.02,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def total_s() -> Callable[[NetworkState, Tensor, Allocator], Tensor]:
    """Predict the remaining time of all requests, those that wait at devices counted, (B,)."""

    def total(state: NetworkState, server: Tensor, allocator: Allocator) -> Tensor:
        decision = allocator.quick(state, server)
        seconds = predict(state, decision, allocator.physics, "request").remaining_s
        return (seconds * (1 + state.waiting_requests) * state.has_request).sum(1)

    return total
