"""Closed forms for the uplink bandwidth of devices that share a server's band.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.link import LinkConfig, spectral_efficiency
from uara.serving.batching import sum_by_server
from uara.serving.modes.sd import geometric_tokens

HALVINGS = 6  # of the equal share, until a link counts as dead at any width

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
    drafts of the rounds still expected; the efficiency is taken at the equal share, at full power
    and without the interference of others.
    """
    gamma = draft_length.to(state.gain.dtype)
    tokens = geometric_tokens(state.acceptance, gamma)
    rounds = state.expected_remaining_tokens / tokens
    drafts = torch.where(gamma > 0, physics.codec.draft_bits(gamma), 0.0)
    bits = state.upload_bits + rounds * drafts
    link = physics.config.link
    share_hz = equal(state, server, draft_length, physics)
    efficiency = _uplink_efficiency(state, server, share_hz, link)
    cost = bits / efficiency.clamp_min(1e-3)
    weight = torch.where(state.has_request, cost.sqrt(), 0.0)
    if link.adaptation == "mcs":
        return _split_by_tables(weight, share_hz, efficiency > 0, state, server, link)
    return split_band(weight, state, server)


def _uplink_efficiency(
    state: NetworkState, server: Tensor, bandwidth_hz: Tensor, link: LinkConfig
) -> Tensor:
    """Compute bit/s/Hz of devices at full power without interference, (B, M)."""
    gain = state.gain.gather(2, server.unsqueeze(-1)).squeeze(-1)
    snr = gain * state.power_max_w / (link.uplink_noise_w_per_hz * bandwidth_hz.clamp_min(1.0))
    return spectral_efficiency(snr, link, "uplink")


def _split_by_tables(
    weight: Tensor,
    share_hz: Tensor,
    is_alive: Tensor,
    state: NetworkState,
    server: Tensor,
    link: LinkConfig,
) -> Tensor:
    """Split bands where a link dies that spreads its power too thinly.

    A link that is dead at the equal share keeps the widest of its halves, quarters, ... at which it
    lives; the others split the rest, and none of them is widened to death.

    Args:
        weight: (B, M) of those that live at the equal share.
        share_hz: (B, M) the equal share.
        is_alive: (B, M) bool, whether a link lives at it.
        state: bands, gains and powers.
        server: (B, M) long.
        link: noise and tables.
    """
    is_dead = ~is_alive & state.has_request
    narrow_hz = share_hz / 2**HALVINGS
    for halving in range(HALVINGS - 1, 0, -1):
        wider_hz = share_hz / 2**halving
        lives = _uplink_efficiency(state, server, wider_hz, link) > 0
        narrow_hz = torch.where(lives, wider_hz, narrow_hz)
    kept_hz = torch.where(is_dead, narrow_hz, 0.0)
    weight = torch.where(is_alive, weight, 0.0)
    totals = sum_by_server(
        torch.stack((weight, kept_hz)), server.expand(2, *server.shape), state.num_servers
    )
    total, kept = totals.gather(-1, server.expand(2, *server.shape))
    rest_hz = state.uplink_bandwidth_hz.gather(1, server) - kept
    split_hz = rest_hz * weight / total.clamp_min(1e-30)
    dies = _uplink_efficiency(state, server, split_hz, link) <= 0
    split_hz = torch.where(dies, torch.minimum(split_hz, share_hz), split_hz)
    return torch.where(is_dead, kept_hz, split_hz)


BANDWIDTH_RULES: dict[str, BandwidthRule] = {"equal": equal, "square_root": square_root}
