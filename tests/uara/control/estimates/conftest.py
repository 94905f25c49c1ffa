"""Slots that are over, made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.estimates.experience import Experience
from uara.network import Decision, NetworkState, SlotOutcome


@pytest.fixture(scope="session")
def make_past() -> Callable[..., Experience]:
    """Make the experience of a slot of half a second in which nothing happened but what is said."""

    def make(before: NetworkState, gamma: int = 4, **outcome: Tensor) -> Experience:
        zeros, none = torch.zeros_like(before.acceptance), before.server < -1
        names = (
            *("tokens", "device_energy_j", "uplink_bits", "downlink_bits", "e2e_s", "ttft_s"),
            *("finished_tokens", "finished_task"),
        )
        empty = dict.fromkeys(names, zeros)
        brought = SlotOutcome(
            **{
                **empty,
                "alive_s": zeros.sum(1),
                "server_energy_j": torch.zeros_like(before.forward_fixed_s),
                "handover": none,
                "finished": none,
                "drained": none.all(1),
                **outcome,
            }
        )
        decision = Decision(
            server=before.server.clamp_min(0),
            bandwidth_hz=torch.full_like(zeros, 1e5),
            power_w=before.power_max_w,
            draft_length=torch.full_like(before.server, gamma),
        )
        after = before.with_(time_s=before.time_s + 0.5)
        lasts = torch.ones_like(before.time_s, dtype=torch.bool)
        return Experience(before, before, decision, brought, after, lasts)

    return make
