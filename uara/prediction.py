"""The latency of a decision in a state: the only place that composes radio and serving.

Shape legend: B networks, M devices, E servers.

The world's step calls `predict` on the true state, controllers call it on what they may know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.radio.link import LinkConfig, rate_bps
from uara.serving.batching import BatchingConfig, solve_batching, sum_by_server
from uara.serving.modes import MODE_INDEX, MODES, RoundParts
from uara.serving.payload import Codec, make_codec
from uara.serving.transfer import kv_transfer_s

Horizon = Literal["slot", "request"]

MIN_RATE_BPS = 1.0  # keeps times finite for a device that was given no spectrum or no power


class PhysicsConfig(BaseModel):
    """How bits and tokens travel: link model, codec, serving mode, batching."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: LinkConfig = Field(LinkConfig(), description="receiver noise and link adaptation")
    codec: Literal["ids", "id_prob", "topk", "full"] = Field(
        "topk", description="what a draft carries; it names its acceptance rule"
    )
    vocab_size: int = Field(
        32_000, gt=1, description="vocabulary of the priced pair (Llama-2: 32,000 tokens)"
    )
    top_k: int = Field(32, gt=0, description="entries of a probability row on the wire")
    frame_overhead_bytes: int = Field(40, ge=0, description="TCP/IP headers per frame")
    mode: Literal["sd", "server_ar", "device_only"] = Field("sd", description="serving mode")
    max_draft_length: int = Field(8, gt=0, description="longest draft a decision may ask for")
    batching: BatchingConfig = Field(BatchingConfig(), description="how servers form batches")
    amplifier_efficiency: float = Field(
        0.35, gt=0, le=1, description="radiated over electrical power of a phone's amplifier"
    )


@dataclass(frozen=True)
class Physics:
    """A physics configuration with its codec."""

    config: PhysicsConfig
    codec: Codec

    @classmethod
    def of(cls, config: PhysicsConfig) -> Physics:
        """Resolve the codec of a configuration."""
        codec = make_codec(
            config.codec,
            vocab_size=config.vocab_size,
            top_k=config.top_k,
            frame_overhead_bytes=config.frame_overhead_bytes,
        )
        return cls(config, codec)


@dataclass(frozen=True)
class Prediction:
    """Latency parts of a decision, (B, M) unless said otherwise.

    For a device without a request they are what one would meet.
    """

    uplink_bps: Tensor
    downlink_bps: Tensor
    upload_s: Tensor  # of the prompt bits still to be sent
    prefill_tokens: Tensor  # context tokens whose KV cache the chosen server lacks
    prefill_tokens_per_s: Tensor
    prefill_s: Tensor  # a KV cache's way over the backhaul included
    draft_s: Tensor  # parts of one round
    draft_uplink_s: Tensor
    wait_s: Tensor
    verify_s: Tensor
    downlink_s: Tensor
    round_s: Tensor
    tokens_per_round: Tensor
    tpot_s: Tensor
    interference_s: Tensor  # decoding time lost to the prefills of others ("request" horizon)
    remaining_s: Tensor  # expected time until the request is finished
    draft_bits: Tensor  # per round
    verdict_bits: Tensor  # expected, per round
    handover: Tensor  # bool: the request changes its server and loses its KV cache
    server_busy: Tensor  # (B, E) share of time in decoding passes
    is_device_only: Tensor  # bool


def effective_mode(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Resolve each device's mode, (B, M) long: draft length 0 is plain server decoding."""
    index = (
        torch.full_like(decision.server, MODE_INDEX[physics.config.mode])
        if decision.mode is None
        else decision.mode
    )
    return torch.where(decision.draft_length == 0, MODE_INDEX["server_ar"], index)


def uplink_rate_bps(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Compute each device's uplink rate to its chosen server, (B, M)."""
    link = physics.config.link
    gain = state.gain.gather(2, decision.server.unsqueeze(-1)).squeeze(-1)
    rate = rate_bps(gain, decision.power_w, decision.bandwidth_hz, link.uplink_noise_w_per_hz, link)
    return rate.clamp_min(MIN_RATE_BPS)


def downlink_rate_bps(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Compute each device's downlink rate, (B, M).

    A server spreads its power evenly over its band and divides the band equally among the devices
    with a request.
    """
    link, server = physics.config.link, decision.server
    gain = state.gain.gather(2, server.unsqueeze(-1)).squeeze(-1)
    users = sum_by_server(state.has_request.to(gain.dtype), server, state.num_servers)
    share = 1 / users.gather(1, server).clamp_min(1)
    rate = rate_bps(
        gain,
        state.downlink_power_w.gather(1, server) * share,
        state.downlink_bandwidth_hz.gather(1, server) * share,
        link.downlink_noise_w_per_hz,
        link,
    )
    return rate.clamp_min(MIN_RATE_BPS)


@dataclass(frozen=True)
class _Work:
    """What each request asks of device, link and server under a decision, (B, M) each."""

    mode: Tensor
    is_local: Tensor  # bool
    handover: Tensor  # bool
    prefill_tokens: Tensor
    gamma: Tensor
    draft_bits: Tensor
    verdict_bits: Tensor
    own_s: Tensor  # time that its rows and tokens add to a forward pass
    transfer_s: Tensor | None  # until its KV cache has come over the backhaul; None: it never does


@dataclass(frozen=True)
class _Queue:
    """Prefill waiting at the servers."""

    backlog: Tensor  # (B, M) own tokens in the queue
    tokens: Tensor  # (B, E)
    requests: Tensor  # (B, E)


def predict(
    state: NetworkState, decision: Decision, physics: Physics, horizon: Horizon = "slot"
) -> Prediction:
    """Predict the latency parts of a decision.

    Args:
        state: what is known (or the truth).
        decision: servers must be valid indices also for devices without a request.
        physics: link model, codec, mode, batching.
        horizon: "slot" for rates now: only requests that decode now load the batches, prefills in
            progress lengthen the passes. "request" for completion times: every request on a server
            loads its batches, and prefills cost everybody on the server their own time.
    """
    server = decision.server
    uplink_bps = uplink_rate_bps(state, decision, physics)
    downlink_bps = downlink_rate_bps(state, decision, physics)
    work = _work(state, decision, physics)

    draft_s = work.gamma * state.draft_time_s
    draft_uplink_s = work.draft_bits / uplink_bps
    downlink_s = torch.where(work.is_local, 0.0, work.verdict_bits / downlink_bps)
    rtt_s = state.rtt_s.gather(1, server)
    think_s = torch.where(work.draft_bits > 0, draft_s + draft_uplink_s + downlink_s + rtt_s, 0.0)

    queue, decodes = _queue(state, server, work, horizon)
    chunk = physics.config.batching.prefill_chunk_tokens
    base_s, own_s = _pass_times(state, server, work, queue, chunk, horizon)
    batch = solve_batching(
        think_s,
        own_s,
        decodes,
        server,
        base_s,
        state.foreign_rows,
        state.forward_per_row_s + state.forward_per_token_s,
        physics.config.batching,
    )
    prefill_tokens_per_s, prefill_s, interference_s = _prefill(
        state, server, work, queue, batch.busy, chunk, horizon
    )
    if work.transfer_s is not None:
        prefill_s = prefill_s + work.transfer_s
    parts = RoundParts(draft_s, draft_uplink_s, batch.wait_s, batch.verify_s, downlink_s, rtt_s)
    round_s, tokens = _by_mode(work.mode, parts, state.acceptance, work.gamma)
    tpot_s = round_s / tokens
    upload_s = torch.where(work.is_local, 0.0, state.upload_bits / uplink_bps)
    decode_s = state.expected_remaining_tokens * tpot_s
    return Prediction(
        uplink_bps=uplink_bps,
        downlink_bps=downlink_bps,
        upload_s=upload_s,
        prefill_tokens=work.prefill_tokens,
        prefill_tokens_per_s=prefill_tokens_per_s,
        prefill_s=prefill_s,
        draft_s=draft_s,
        draft_uplink_s=draft_uplink_s,
        wait_s=batch.wait_s,
        verify_s=batch.verify_s,
        downlink_s=downlink_s,
        round_s=round_s,
        tokens_per_round=tokens,
        tpot_s=tpot_s,
        interference_s=interference_s,
        remaining_s=upload_s + prefill_s + interference_s + decode_s,
        draft_bits=work.draft_bits,
        verdict_bits=work.verdict_bits,
        handover=work.handover,
        server_busy=batch.busy,
        is_device_only=work.is_local,
    )


def _work(state: NetworkState, decision: Decision, physics: Physics) -> _Work:
    """Resolve modes, caches and payloads."""
    server = decision.server
    mode = effective_mode(state, decision, physics)
    is_ar = mode == MODE_INDEX["server_ar"]
    is_local = mode == MODE_INDEX["device_only"]
    moved = (server != state.server) & state.has_request & ~is_local
    cached, transfer_s = torch.where(moved, 0.0, state.kv_tokens), None
    if state.kv_arriving_tokens is not None:
        transfer_s = torch.where(is_local, 0.0, kv_transfer_s(state, server))
        cached = state.kv_tokens + state.kv_arriving_tokens
    missing = (state.context_tokens - cached).clamp_min(0)
    gamma = torch.where(is_ar, 0, decision.draft_length).to(state.gain.dtype)
    verdict_bits = torch.where(
        is_ar, physics.codec.token_bits(), physics.codec.verdict_bits(gamma, state.acceptance)
    )
    per_token_s = state.forward_per_token_s.gather(1, server)
    per_context_s = state.forward_per_context_s.gather(1, server)
    return _Work(
        mode=mode,
        is_local=is_local,
        handover=moved & (state.kv_tokens > 0),
        prefill_tokens=torch.where(is_local, 0.0, missing),
        gamma=gamma,
        draft_bits=torch.where(is_ar | is_local, 0.0, physics.codec.draft_bits(gamma)),
        verdict_bits=torch.where(is_local, 0.0, verdict_bits),
        own_s=state.forward_per_row_s.gather(1, server)
        + (gamma + 1) * per_token_s
        + state.context_tokens * per_context_s,
        transfer_s=transfer_s,
    )


def _queue(
    state: NetworkState, server: Tensor, work: _Work, horizon: Horizon
) -> tuple[_Queue, Tensor]:
    """Find who loads the servers: the prefill queue, and who takes part in batches (B, M)."""
    dtype = state.gain.dtype
    on_server = (state.has_request & ~work.is_local).to(dtype)
    if horizon == "slot":
        is_sent = state.upload_bits <= 0
        if work.transfer_s is not None:
            is_sent = is_sent & (work.transfer_s <= 0)
        decodes = on_server * (is_sent & (work.prefill_tokens <= 0))
        backlog = on_server * is_sent * work.prefill_tokens
    else:
        decodes = on_server
        backlog = on_server * work.prefill_tokens
    sums = sum_by_server(
        torch.stack((backlog, (backlog > 0).to(dtype))),
        server.expand(2, *server.shape),
        state.num_servers,
    )
    foreign = state.foreign_prefill_tokens
    return _Queue(backlog, sums[0] + foreign, sums[1] + (foreign > 0)), decodes


def _pass_times(
    state: NetworkState, server: Tensor, work: _Work, queue: _Queue, chunk: int, horizon: Horizon
) -> tuple[Tensor, Tensor]:
    """Compute a pass's time without decoding requests (B, E), and what each adds to it (B, M)."""
    if horizon == "request":
        return state.forward_fixed_s, work.own_s
    chunk_s = chunk * state.forward_per_token_s
    # A request decodes when its own prefill is over: the passes it meets carry those of others.
    alone = (queue.backlog > 0) & (queue.requests.gather(1, server) <= 1)
    own_s = work.own_s - alone * chunk_s.gather(1, server)
    return state.forward_fixed_s + (queue.requests > 0) * chunk_s, own_s


def _prefill(
    state: NetworkState,
    server: Tensor,
    work: _Work,
    queue: _Queue,
    busy: Tensor,
    chunk: int,
    horizon: Horizon,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute prefill rate, prefill time and decoding time lost to others' prefill, (B, M) each.

    A chunk rides on a decoding pass when there is one, and else runs by itself.
    """
    chunk_s = chunk * state.forward_per_token_s + busy * state.forward_fixed_s
    rate = (chunk / chunk_s).gather(1, server)
    need = work.prefill_tokens
    if horizon == "slot":
        others = queue.requests.gather(1, server) - (queue.backlog > 0).to(rate.dtype)
        rate = rate / (others + 1)
        return rate, need / rate, torch.zeros_like(rate)
    # First come, first served in an unknown order: on average half of the others go first.
    ahead = queue.tokens.gather(1, server) - queue.backlog
    prefill_s = torch.where(need > 0, (need + 0.5 * ahead) / rate, 0.0)
    lost_s = torch.where(need > 0, 0.5, 1.0) * ahead * state.forward_per_token_s.gather(1, server)
    return rate, prefill_s, torch.where(work.is_local, 0.0, lost_s)


def _by_mode(
    mode: Tensor, parts: RoundParts, alpha: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute round time and tokens per round with each device's own mode, (B, M) both."""
    round_s = torch.zeros_like(alpha)
    tokens = torch.zeros_like(alpha)
    for name, index in MODE_INDEX.items():
        serving = MODES[name]
        chosen = mode == index
        round_s = torch.where(chosen, serving.round_time_s(parts), round_s)
        tokens = torch.where(chosen, serving.expected_tokens(alpha, gamma), tokens)
    return round_s, tokens.clamp_min(1e-6)
