"""Rates of devices and servers over what disturbs them, on bands of their own or a shared one.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from uara.network import Decision, NetworkState
from uara.radio.interference import (
    downlink_noise_by_pair_w_per_hz,
    mean_density_w_per_hz,
    uplink_noise_w_per_hz,
)
from uara.radio.link import LinkConfig, rate_bps
from uara.serving.batching import sum_by_server

MIN_RATE_BPS = 1.0  # keeps times finite for a device that was given no spectrum or no power
ACTIVITY_PASSES = 2  # from rates to activities and back, where links disturb each other

# From uplink and downlink rates (B, M) to the share of time in which devices (B, M) and servers
# (B, E) transmit.
Activity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def uplink_over_noise_bps(
    state: NetworkState, decision: Decision, link: LinkConfig, noise_w_per_hz: float | Tensor
) -> Tensor:
    """Compute each device's uplink rate to its chosen server over a noise density, (B, M)."""
    gain = state.gain.gather(2, decision.server.unsqueeze(-1)).squeeze(-1)
    rate = rate_bps(gain, decision.power_w, decision.bandwidth_hz, noise_w_per_hz, link, "uplink")
    return rate.clamp_min(MIN_RATE_BPS)


def downlink_over_noise_bps(
    state: NetworkState, decision: Decision, link: LinkConfig, noise_w_per_hz: float | Tensor
) -> Tensor:
    """Compute each device's downlink rate over a noise density, (B, M)."""
    server = decision.server
    gain = state.gain.gather(2, server.unsqueeze(-1)).squeeze(-1)
    share = downlink_share(state, server)
    rate = rate_bps(
        gain,
        state.downlink_power_w.gather(1, server) * share,
        state.downlink_bandwidth_hz.gather(1, server) * share,
        noise_w_per_hz,
        link,
        "downlink",
    )
    return rate.clamp_min(MIN_RATE_BPS)


def downlink_share(state: NetworkState, server: Tensor) -> Tensor:
    """Compute a device's share of its server's band, (B, M)."""
    users = sum_by_server(state.has_request.to(state.gain.dtype), server, state.num_servers)
    return 1 / users.gather(1, server).clamp_min(1)


def shared_band_rates_bps(
    state: NetworkState, decision: Decision, link: LinkConfig, activity: Activity
) -> tuple[Tensor, Tensor]:
    """Compute both rates where all servers use the whole band, (B, M) each.

    Rates decide how long everybody transmits, and that decides the interference: two damped
    rounds, from links that nobody disturbs.
    """
    server = decision.server
    band_hz = state.uplink_bandwidth_hz.gather(1, server)
    uplink_bps = uplink_over_noise_bps(state, decision, link, link.uplink_noise_w_per_hz)
    downlink_bps = downlink_over_noise_bps(state, decision, link, link.downlink_noise_w_per_hz)
    devices, servers = activity(uplink_bps, downlink_bps)
    for turn in range(ACTIVITY_PASSES):
        if turn > 0:
            fresh = activity(uplink_bps, downlink_bps)
            devices, servers = 0.5 * (devices + fresh[0]), 0.5 * (servers + fresh[1])
        density = mean_density_w_per_hz(decision.power_w, band_hz, devices)
        noise = uplink_noise_w_per_hz(link, state.gain, server, density)
        uplink_bps = uplink_over_noise_bps(state, decision, link, noise)
        density = mean_density_w_per_hz(
            state.downlink_power_w, state.downlink_bandwidth_hz, servers
        )
        by_pair = downlink_noise_by_pair_w_per_hz(link, state.gain, density)
        assert isinstance(by_pair, Tensor), "a shared band has interference"
        noise = by_pair.gather(2, server.unsqueeze(-1)).squeeze(-1)
        downlink_bps = downlink_over_noise_bps(state, decision, link, noise)
    return uplink_bps, downlink_bps
