"""The uplinks that a rule divides: who is on air, what noise they meet, what their bands carry.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.noise_density import RateCurve
from uara.network import NetworkState
from uara.prediction import Prediction
from uara.radio.interference import mean_density_w_per_hz, uplink_noise_w_per_hz
from uara.radio.link import LinkConfig, spectral_efficiency
from uara.serving.batching import sum_by_server

MIN_EFFICIENCY = 1e-3  # bit/s/Hz, so that a dead link has a finite cost
MIN_SNR_HZ = 1e-3


def chosen_gain(state: NetworkState, server: Tensor) -> Tensor:
    """Take each device's gain to its server, (B, M)."""
    return state.gain.gather(2, server.unsqueeze(-1)).squeeze(-1)


def equal_share_hz(state: NetworkState, server: Tensor) -> Tensor:
    """Divide each band equally among the devices with a request, (B, M)."""
    has = state.has_request.to(state.gain.dtype)
    users = sum_by_server(has, server, state.num_servers).gather(1, server)
    return state.uplink_bandwidth_hz.gather(1, server) * has / users.clamp_min(1e-30)


def uplink_efficiency(
    state: NetworkState,
    server: Tensor,
    bandwidth_hz: Tensor,
    link: LinkConfig,
    noise_w_per_hz: Tensor | None = None,
) -> Tensor:
    """Compute bit/s/Hz of devices at full power, (B, M).

    Args:
        state: gains and powers.
        server: (B, M) long.
        bandwidth_hz: (B, M).
        link: receiver noise and link adaptation.
        noise_w_per_hz: (B, M) with interference; None: the receiver's noise alone.
    """
    noise = link.uplink_noise_w_per_hz if noise_w_per_hz is None else noise_w_per_hz
    snr = chosen_gain(state, server) * state.power_max_w / (noise * bandwidth_hz.clamp_min(1.0))
    return spectral_efficiency(snr, link, "uplink")


def rate_curves(
    state: NetworkState, server: Tensor, link: LinkConfig, noise_w_per_hz: Tensor | None
) -> RateCurve:
    """Describe what a band carries for each device at full power, (B, M) float64.

    With `mcs` the rate is a staircase of the bandwidth; bit/s/Hz are then those at equal shares.

    Args:
        state: gains and powers.
        server: (B, M) long.
        link: receiver noise and link adaptation.
        noise_w_per_hz: (B, M) with interference; None: the receiver's noise alone.
    """
    if link.adaptation == "mcs":
        share_hz = equal_share_hz(state, server)
        efficiency = uplink_efficiency(state, server, share_hz, link, noise_w_per_hz)
        return RateCurve.straight(efficiency.double().clamp_min(MIN_EFFICIENCY))
    noise = link.uplink_noise_w_per_hz if noise_w_per_hz is None else noise_w_per_hz.double()
    gap = 10 ** (link.snr_gap_db / 10)
    received_w = chosen_gain(state, server).double() * state.power_max_w.double()
    snr_hz = (received_w / (noise * gap)).clamp_min(MIN_SNR_HZ)
    return RateCurve(snr_hz, torch.full_like(snr_hz, link.spectral_efficiency_max))


def uplink_activity(state: NetworkState, prediction: Prediction) -> Tensor:
    """Compute the share of time in which each device transmits now, (B, M) in [0, 1].

    Who uploads transmits all the time, who decodes the share of a round that its drafts take.

    Args:
        state: phases.
        prediction: of the decision that is taken or tried.
    """
    on_air = state.has_request & ~prediction.is_device_only
    uploads = on_air & (state.upload_bits > 0)
    decodes = on_air & ~uploads & (prediction.prefill_tokens <= 0)
    drafts = (prediction.draft_uplink_s / prediction.round_s).clamp(max=1)
    return torch.where(uploads, 1.0, torch.where(decodes, drafts, 0.0))


def expected_uplink_noise(
    state: NetworkState, prediction: Prediction, server: Tensor, power_w: Tensor, link: LinkConfig
) -> Tensor:
    """Compute noise and expected interference of each device's uplink, (B, M) W/Hz.

    Args:
        state: gains and bands.
        prediction: of the decision that is taken or tried.
        server: (B, M) long.
        power_w: (B, M).
        link: receiver noise, and whether servers share a band.
    """
    band_hz = state.uplink_bandwidth_hz.gather(1, server)
    density = mean_density_w_per_hz(power_w, band_hz, uplink_activity(state, prediction))
    noise = uplink_noise_w_per_hz(link, state.gain, server, density)
    return torch.as_tensor(noise, dtype=power_w.dtype).expand_as(power_w)
