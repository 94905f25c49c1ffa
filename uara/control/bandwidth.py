"""Closed forms for the uplink bandwidth of devices that share a server's band.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.link import spectral_efficiency
from uara.serving.batching import sum_by_server
from uara.serving.modes.sd import geometric_tokens

BandwidthRule = Callable[[NetworkState, Tensor, Tensor, Physics], Tensor]


def split_band(weight: Tensor, state: NetworkState, server: Tensor) -> Tensor:
    """Split each server's band in proportion to weights; the budget always holds.

    Args:
        weight: (B, M) >= 0, 0 for devices without a request.
        state: bands.
        server: (B, M) long.

    Returns:
        (B, M) hertz.
    """
    total = sum_by_server(weight, server, state.num_servers).gather(1, server)
    band = state.uplink_bandwidth_hz.gather(1, server)
    return band * weight / total.clamp_min(1e-30)


def equal(state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics) -> Tensor:
    """Give every device with a request on a server the same bandwidth, (B, M)."""
    return split_band(state.has_request.to(state.gain.dtype), state, server)


def square_root(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Minimise the sum of the remaining uplink times over the band of each server, (B, M).

    With c_i = remaining uplink bits over spectral efficiency, sum c_i / b_i under sum b_i = W is
    least at b_i proportional to sqrt(c_i). The remaining bits are the rest of the prompt and the
    drafts of the rounds still expected; the efficiency is taken at the equal share.
    """
    gamma = draft_length.to(state.gain.dtype)
    tokens = geometric_tokens(state.acceptance, gamma)
    rounds = state.expected_remaining_tokens / tokens
    drafts = torch.where(gamma > 0, physics.codec.draft_bits(gamma), 0.0)
    bits = state.upload_bits + rounds * drafts
    link = physics.config.link
    share_hz = equal(state, server, draft_length, physics).clamp_min(1.0)
    gain = state.gain.gather(2, server.unsqueeze(-1)).squeeze(-1)
    snr = gain * state.power_max_w / (link.uplink_noise_w_per_hz * share_hz)
    cost = bits / spectral_efficiency(snr, link).clamp_min(1e-3)
    weight = torch.where(state.has_request, cost.sqrt(), 0.0)
    return split_band(weight, state, server)


BANDWIDTH_RULES: dict[str, BandwidthRule] = {"equal": equal, "square_root": square_root}
