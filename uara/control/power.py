"""Rules for the transmit power of devices.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.noise_density import LN2
from uara.control.uplink_conditions import chosen_gain, expected_uplink_noise
from uara.control.wmmse import wmmse_power
from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict
from uara.radio.link import LinkConfig, dbm_to_w, spectral_efficiency

RESOURCE_BLOCK_HZ = 180e3  # twelve subcarriers of 15 kHz, 3GPP TS 38.211 clause 4.4.4.1
SNR_SEARCH_DB = (-30.0, 60.0)  # in which link adaptation tables are searched
SNR_SEARCH_STEPS = 40


class PowerConfig(BaseModel):
    """Parameters of the power rules; each is read by the rule that it is named after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    open_loop_p0_dbm: float = Field(
        -80.0, description="received power per resource block that `open_loop` aims at"
    )
    open_loop_alpha: float = Field(
        0.8, ge=0, le=1, description="share of the path loss that `open_loop` makes up for"
    )
    draft_deadline_s: float = Field(
        0.1, gt=0, description="time in which `min_energy_deadline` sends a draft"
    )
    upload_deadline_s: float = Field(
        10.0,
        gt=0,
        description="age of a request by which `min_energy_deadline` has sent its prompt",
    )
    wmmse_iterations: int = Field(30, gt=0, description="steps of `wmmse`")


PowerRule = Callable[[NetworkState, Decision, Physics, PowerConfig], Tensor]


def full(state: NetworkState, decision: Decision, physics: Physics, config: PowerConfig) -> Tensor:
    """Send at the limit, (B, M): fastest where servers have bands of their own."""
    return state.power_max_w


def open_loop(
    state: NetworkState, decision: Decision, physics: Physics, config: PowerConfig
) -> Tensor:
    """Make up for a share of the path loss, (B, M): P0 + 10 log10(blocks) + alpha PL, in dBm.

    3GPP TS 38.213 clause 7.1.1 without closed loop and transport format terms; resource blocks of
    180 kHz, whole or not.
    """
    blocks = decision.bandwidth_hz / RESOURCE_BLOCK_HZ
    gain = chosen_gain(state, decision.server)
    aim_w = dbm_to_w(config.open_loop_p0_dbm) * blocks * gain ** (-config.open_loop_alpha)
    return torch.minimum(aim_w, state.power_max_w)


def min_energy_deadline(
    state: NetworkState, decision: Decision, physics: Physics, config: PowerConfig
) -> Tensor:
    """Send with the least power that meets a deadline, as fast as can be where none does, (B, M).

    Bits D in time tau over b hertz take p = (N b G / g) (2^(D / (b tau)) - 1) with gap G; the
    energy of a bit rises with the power, so the least that is in time is the best. A draft has its
    time from when it is sent, a prompt from when its request arrived.
    Under `reuse1` the interference is that of full power, which others rarely exceed.
    """
    link, server = physics.config.link, decision.server
    drafts = torch.where(
        decision.draft_length > 0,
        physics.codec.draft_bits(decision.draft_length.to(state.gain.dtype)),
        0.0,
    )
    rate_bps = torch.where(
        state.upload_bits > 0,
        state.upload_bits / (config.upload_deadline_s - state.age_s).clamp_min(1e-9),
        drafts / config.draft_deadline_s,
    )
    noise = _noise_at_full_power(state, decision, physics)
    bandwidth_hz = decision.bandwidth_hz.clamp_min(1e-3)
    noise_w = noise * bandwidth_hz / chosen_gain(state, server)
    needed_w = noise_w * _needed_snr(rate_bps / bandwidth_hz, link)
    return torch.minimum(needed_w, state.power_max_w)


def wmmse(state: NetworkState, decision: Decision, physics: Physics, config: PowerConfig) -> Tensor:
    """Weigh one's own rate against the interference that others meet, (B, M); see `wmmse_power`.

    Where servers have bands of their own nobody disturbs anybody: its limit is full power.
    """
    if physics.config.link.interference == "orthogonal":
        return state.power_max_w
    return wmmse_power(state, decision, physics, iterations=config.wmmse_iterations)


def _noise_at_full_power(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Compute noise and interference if everybody sends at the limit, (B, M) W/Hz."""
    link, power_w = physics.config.link, state.power_max_w
    if link.interference == "orthogonal":
        return torch.full_like(power_w, link.uplink_noise_w_per_hz)
    prediction = predict(state, decision, physics, "request")
    return expected_uplink_noise(state, prediction, decision.server, power_w, link)


def _needed_snr(efficiency: Tensor, link: LinkConfig) -> Tensor:
    """Find the least SNR that carries bit/s/Hz, that of the best where none carries them."""
    if link.adaptation == "shannon":
        best = efficiency.clamp(max=link.spectral_efficiency_max)
        return 10 ** (link.snr_gap_db / 10) * torch.expm1(best * LN2)
    low = torch.full_like(efficiency, SNR_SEARCH_DB[0])
    high = torch.full_like(efficiency, SNR_SEARCH_DB[1])
    best = spectral_efficiency(10 ** (high / 10), link, "uplink")
    wanted = torch.minimum(efficiency, best)
    for _ in range(SNR_SEARCH_STEPS):
        middle = 0.5 * (low + high)
        carries = spectral_efficiency(10 ** (middle / 10), link, "uplink") >= wanted
        low, high = torch.where(carries, low, middle), torch.where(carries, middle, high)
    # The tables are looked up in steps of 0.01 dB, rounded down: a hair more is on the safe side.
    snr: Tensor = torch.exp(high * (math.log(10) / 10)) * (1 + 1e-5)
    return torch.where(efficiency > 0, snr, 0.0)


POWER_RULES: dict[str, PowerRule] = {
    "full": full,
    "open_loop": open_loop,
    "min_energy_deadline": min_energy_deadline,
    "wmmse": wmmse,
}
