"""What a device can reckon by itself of joining each server, from its own links and the broadcasts.

Shape legend: B networks, M devices, E servers.

`uara.prediction` couples all devices of a network; no device knows enough for that. Here each pair
is priced alone: the others on a server share its band equally and sit in a forward pass for a fixed
share of the time. Without others, upload and decoding are those of `uara.prediction.predict`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uara.network import NetworkState, Phase
from uara.prediction import Physics
from uara.radio.interference import (
    downlink_noise_by_pair_w_per_hz,
    mean_density_w_per_hz,
    uplink_noise_by_pair_w_per_hz,
)
from uara.radio.link import spectral_efficiency
from uara.rates import MIN_RATE_BPS
from uara.serving.batching import sum_by_server
from uara.serving.modes import MODES, RoundParts, ServingMode

ASSUMED_DRAFT_LENGTH = 4
PRESENCE_WHEN_DRAFTING = 0.5  # share of time that another request sits in a forward pass
ASSUMED_ACTIVITY = 0.05  # share of time that a decoding device sends, and a server per request
ASSUMED_RESIDUAL_SHARE = 0.5  # mean of uara.serving.batching.residual_share over think times


def assumed_draft_length(physics: Physics) -> int:
    """Tell the draft length that a device reckons with."""
    if not MODES[physics.config.mode].drafts:
        return 0
    return min(ASSUMED_DRAFT_LENGTH, physics.config.max_draft_length)


@dataclass(frozen=True)
class ServerLoad:
    """What servers broadcast about the devices of the network on them."""

    serves: Tensor  # (B, M, E) 1 at the server of a device's request, else 0; own row only
    requests: Tensor  # (B, E)
    uploading: Tensor  # (B, E) of them, still sending their prompt
    held_tokens: Tensor  # (B, E) context tokens in KV memory
    backlog_tokens: Tensor  # (B, E) context tokens that wait for prefill, foreign ones included


def server_load(state: NetworkState) -> ServerLoad:
    """Add up the requests that lie on each server."""
    dtype = state.gain.dtype
    # Row 0 of the table is "no server"; looking rows up is faster than comparing with each server.
    table = torch.eye(state.num_servers + 1, dtype=dtype)[:, 1:].contiguous()
    row = torch.where(state.has_request, state.server + 1, 0)
    serves = table.index_select(0, row.flatten()).view(state.gain.shape)
    missing = (state.context_tokens - state.kv_tokens).clamp_min(0)
    is_uploading = state.phase == int(Phase.UPLOADING)
    columns = torch.stack(
        (torch.ones_like(missing), is_uploading.to(dtype), state.kv_tokens, missing), dim=1
    )
    totals = columns @ serves  # (B, 4, E)
    requests, uploading, held, backlog = totals.unbind(1)
    return ServerLoad(serves, requests, uploading, held, backlog + state.foreign_prefill_tokens)


@dataclass(frozen=True)
class LocalPrediction:
    """Times of a device's request on each server, (B, M, E)."""

    spectral_efficiency: Tensor  # bit/s/Hz of the uplink at the device's share of the band
    held_tokens: Tensor  # context tokens of the request in the server's KV memory
    upload_s: Tensor
    prefill_s: Tensor
    tpot_s: Tensor
    remaining_s: Tensor  # expected time until the request is finished
    inflicted_s: Tensor  # sum over the others of the time that the prefill takes from them


def predict_locally(state: NetworkState, load: ServerLoad, physics: Physics) -> LocalPrediction:
    """Price each (device, server) pair alone.

    The times are those of the "request" horizon of `uara.prediction.predict` with full power, an
    equal share of the band, the assumed draft length, and a fixed presence of the others.

    Args:
        state: B networks.
        load: of the same state.
        physics: link model, codec, mode, batching.
    """
    mode = MODES[physics.config.mode]
    serves = load.serves
    others = load.requests[:, None, :] - serves
    efficiency, uplink_bps, downlink_bps = _rates(state, others, physics)
    context = state.context_tokens.unsqueeze(-1)
    held = state.kv_tokens.unsqueeze(-1) * serves

    presence = PRESENCE_WHEN_DRAFTING if mode.drafts else 1.0
    wait = _by_server(
        load, lambda others: ASSUMED_RESIDUAL_SHARE * (1 - _idle(state, others, presence))
    )
    verify_s = _forward_s(state, load, presence, assumed_draft_length(physics))
    tpot_s = _tpot_s(state, verify_s, wait, (uplink_bps, downlink_bps), mode, physics)
    decode_s = state.expected_remaining_tokens.unsqueeze(-1) * tpot_s
    if not mode.uses_server:
        nothing = torch.zeros_like(decode_s)
        return LocalPrediction(efficiency, held, nothing, nothing, tpot_s, decode_s, nothing)

    upload_s = state.upload_bits.unsqueeze(-1) / uplink_bps
    lacking = (context - held).clamp_min(0)
    per_token_s = state.forward_per_token_s[:, None, :]
    chunk = float(physics.config.batching.prefill_chunk_tokens)
    fixed_s = state.forward_fixed_s / chunk
    seconds_per_token = _by_server(
        load,
        lambda others: (
            state.forward_per_token_s
            + (1 - _idle(state, others, presence) * (1 - presence)) * fixed_s
        ),
    )
    backlog = torch.addcmul(load.backlog_tokens[:, None, :], lacking, serves, value=-1)
    # First come, first served in an unknown order: on average half of the others go first.
    half = 0.5 * lacking.sign()
    ahead = half * backlog
    prefill_s = (lacking + ahead).mul_(seconds_per_token)
    interference_s = (backlog - ahead).mul_(per_token_s)
    return LocalPrediction(
        spectral_efficiency=efficiency,
        held_tokens=held,
        upload_s=upload_s,
        prefill_s=prefill_s,
        tpot_s=tpot_s,
        remaining_s=(upload_s + prefill_s).add_(interference_s).add_(decode_s),
        inflicted_s=(others * lacking).mul_(per_token_s),
    )


def _by_server(load: ServerLoad, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Spread a function of the number of others over pairs, (B, M, E).

    It is worked out twice per server, for a device that it serves and for one that would join, and
    not once per pair.

    Args:
        load: who is served where.
        value: of the number of other requests on each server, (B, E) to (B, E).
    """
    joining, staying = value(load.requests), value((load.requests - 1).clamp_min(0))
    return torch.addcmul(joining[:, None, :], load.serves, (staying - joining)[:, None, :])


def _idle(state: NetworkState, others: Tensor, presence: float) -> Tensor:
    """Compute the probability that none of the others sits in a pass, (B, E)."""
    idle: Tensor = (1 - presence) ** others * (state.foreign_rows <= 0)
    return idle


def _rates(state: NetworkState, others: Tensor, physics: Physics) -> tuple[Tensor, Tensor, Tensor]:
    """Compute uplink efficiency and both rates at an equal share of the band, (B, M, E) each."""
    link = physics.config.link
    sharers = others + 1
    uplink_noise, downlink_noise = _noise_w_per_hz(state, physics)
    uplink_hz = state.uplink_bandwidth_hz[:, None, :] / sharers
    if isinstance(uplink_noise, Tensor):
        snr = state.gain * state.power_max_w.unsqueeze(-1) / uplink_noise
    else:
        snr = state.gain * (state.power_max_w / uplink_noise).unsqueeze(-1)
    efficiency = spectral_efficiency(snr.div_(uplink_hz), link, "uplink")
    # A server spreads its power evenly over its band, so the share leaves the SNR alone.
    if isinstance(downlink_noise, Tensor):
        density = (state.downlink_power_w / state.downlink_bandwidth_hz)[:, None, :]
        density = density / downlink_noise
    else:
        hertz = state.downlink_bandwidth_hz * downlink_noise
        density = (state.downlink_power_w / hertz)[:, None, :]
    downlink_hz = state.downlink_bandwidth_hz[:, None, :] / sharers
    downlink_bps = downlink_hz * spectral_efficiency(state.gain * density, link, "downlink")
    return (
        efficiency,
        (uplink_hz * efficiency).clamp_min(MIN_RATE_BPS),
        downlink_bps.clamp_min(MIN_RATE_BPS),
    )


def _noise_w_per_hz(state: NetworkState, physics: Physics) -> tuple[float | Tensor, float | Tensor]:
    """Compute noise and interference density up and down; (B, M, E) where bands are shared.

    What others send is not known to a device: who uploads is taken to send all the time, who
    decodes and the servers that serve somebody for an assumed share of it.
    """
    link = physics.config.link
    if link.interference == "orthogonal":
        return link.uplink_noise_w_per_hz, link.downlink_noise_w_per_hz
    server = torch.where(state.has_request, state.server, -1).clamp_min(0)
    sends = state.has_request & (state.server >= 0)
    is_uploading = state.phase == int(Phase.UPLOADING)
    activity = torch.where(is_uploading, 1.0, ASSUMED_ACTIVITY) * sends
    band_hz = state.uplink_bandwidth_hz.gather(1, server)
    up = mean_density_w_per_hz(state.power_max_w, band_hz, activity)
    served = sum_by_server(sends.to(state.gain.dtype), server, state.num_servers)
    down = mean_density_w_per_hz(
        state.downlink_power_w,
        state.downlink_bandwidth_hz,
        (ASSUMED_ACTIVITY * served).clamp(max=1),
    )
    return (
        uplink_noise_by_pair_w_per_hz(link, state.gain, server, up),
        downlink_noise_by_pair_w_per_hz(link, state.gain, down),
    )


def _forward_s(state: NetworkState, load: ServerLoad, presence: float, draft_length: int) -> Tensor:
    """Compute the time of a forward pass that carries the request, (B, M, E)."""
    per_context_s = state.forward_per_context_s
    row_s = state.forward_per_row_s + (draft_length + 1) * state.forward_per_token_s
    foreign_s = state.foreign_rows * (state.forward_per_row_s + state.forward_per_token_s)
    alone_s = state.forward_fixed_s + foreign_s + row_s
    others_s = presence * (load.requests * row_s + load.held_tokens * per_context_s)
    context = state.context_tokens.unsqueeze(-1)
    joining_s = torch.addcmul((alone_s + others_s)[:, None, :], context, per_context_s[:, None, :])
    # A device that is served already is not one of the others.
    server = state.server.clamp_min(0)
    own_s = row_s.gather(1, server) + state.kv_tokens * per_context_s.gather(1, server)
    return joining_s.addcmul_(load.serves, own_s.unsqueeze(-1), value=-presence)


def _tpot_s(
    state: NetworkState,
    verify_s: Tensor,
    wait: Tensor,
    rates_bps: tuple[Tensor, Tensor],
    mode: ServingMode,
    physics: Physics,
) -> Tensor:
    """Compute seconds per token, (B, M, E); `wait` is the mean wait in forward passes."""
    gamma, codec = assumed_draft_length(physics), physics.codec
    length = torch.tensor(float(gamma))
    uplink_bps, downlink_bps = rates_bps
    uplink_s = downlink_s = wait_s = torch.zeros(())
    if gamma > 0 and mode.uses_server:
        verdict_bits = codec.verdict_bits(length, state.acceptance).unsqueeze(-1)
        uplink_s = codec.draft_bits(float(gamma)) / uplink_bps
        downlink_s = verdict_bits / downlink_bps
        wait_s = wait * verify_s
    draft_s, rtt_s = gamma * state.draft_time_s.unsqueeze(-1), state.rtt_s[:, None, :]
    alpha = state.acceptance.unsqueeze(-1)
    parts = RoundParts(
        draft_s, uplink_s, wait_s, verify_s, downlink_s, rtt_s, alpha, length, physics.config.window
    )
    if physics.config.draft_budget is not None:
        first_uplink_s = codec.draft_bits(1.0) / uplink_bps
        budget = physics.config.draft_budget
        parts = replace(parts, draft_budget=budget, first_uplink_s=first_uplink_s)
    tokens = mode.round_tokens(parts)
    return (mode.round_time_s(parts) / tokens).expand_as(verify_s)
