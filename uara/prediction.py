"""The latency of a decision in a state: the only place that composes radio and serving.

Shape legend: B networks, M devices, E servers.

The world's step calls `predict` on the true state, controllers call it on what they may know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.radio.link import LinkConfig
from uara.rates import (
    downlink_over_noise_bps,
    downlink_share,
    shared_band_rates_bps,
    uplink_over_noise_bps,
)
from uara.serving.batching import (
    Batch,
    BatchingConfig,
    Comeback,
    solve_batching,
    sum_by_server,
)
from uara.serving.fluid import FluidService, fluid_service
from uara.serving.modes import CANDIDATES, MODE_INDEX, RoundParts
from uara.serving.modes.mixed import comeback, effort, overlaps, per_mode, unless_local
from uara.serving.payload import Codec, make_codec
from uara.serving.prefill import Horizon, pass_times_s, prefill_times, queue_prefill
from uara.serving.transfer import kv_transfer_s
from uara.young_fields import dump_without_defaults


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
    ids_rule: Literal["greedy", "onehot", "gumbel"] = Field(
        "greedy", description="acceptance rule of codec `ids`; the last two sample"
    )
    top_k: int = Field(32, gt=0, description="entries of a probability row on the wire")
    probability_bits: Literal[32, 16, 8] = Field(
        32, description="of a drafted token's probability under `id_prob`; fewer are rounded up"
    )
    lossy: bool = Field(
        False,
        description="under `id_prob`, cut the residual to the Top-K: the output is not the "
        "target's any more, by a bias that records state",
    )
    frame_overhead_bytes: int = Field(40, ge=0, description="TCP/IP headers per frame")
    mode: Literal["sd", "server_ar", "device_only", "psd", "async", "auto"] = Field(
        "sd",
        description="serving mode; auto: per device the lossless one of least predicted time per "
        "token",
    )
    window: int = Field(
        1, gt=0, description="drafts that may be in flight unverified; read by mode async alone"
    )
    draft_budget: PositiveFloat | Literal["verdict"] | None = Field(
        None,
        description="drafting time in seconds after which a draft is cut and sent, or `verdict`: "
        "as long as a verdict takes; null: never; read by mode async alone",
    )
    max_draft_length: int = Field(8, gt=0, description="longest draft a decision may ask for")
    batching: BatchingConfig = Field(BatchingConfig(), description="how servers form batches")
    service: Literal["batched", "fluid"] = Field(
        "batched", description="batched forward passes, or servers divided among their devices"
    )
    amplifier_efficiency: float = Field(
        0.35, gt=0, le=1, description="radiated over electrical power of a phone's amplifier"
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(
            self,
            dump,
            ("window", "draft_budget", "service", "ids_rule", "probability_bits", "lossy"),
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
            ids_rule=config.ids_rule,
            probability_bits=config.probability_bits,
            lossy=config.lossy,
        )
        return cls(config, codec)


@dataclass(frozen=True)
class Prediction:
    """Latency parts of a decision, (B, M) unless said otherwise.

    For a device without a request they are what one would meet. Where a mode overlaps drafting and
    verifying, a round is shorter than the sum of its parts.
    """

    uplink_bps: Tensor
    downlink_bps: Tensor
    upload_s: Tensor  # of the prompt bits still to be sent
    prefill_tokens: Tensor  # context tokens whose KV cache the chosen server lacks
    prefill_tokens_per_s: Tensor
    prefill_s: Tensor  # a KV cache's way over the backhaul included
    draft_s: Tensor  # parts of one round; thrown-away drafts included
    draft_uplink_s: Tensor
    wait_s: Tensor
    verify_s: Tensor
    downlink_s: Tensor
    round_s: Tensor
    tokens_per_round: Tensor
    accepted_per_round: Tensor  # draft tokens that the target tested and kept
    new_tokens: Tensor  # per round, that passes are given; void drafts included
    tpot_s: Tensor
    interference_s: Tensor  # decoding time lost to the prefills of others ("request" horizon)
    remaining_s: Tensor  # expected time until the request is finished
    draft_bits: Tensor  # per round
    verdict_bits: Tensor  # expected, per round
    handover: Tensor  # bool: the request changes its server and loses its KV cache
    server_busy: Tensor  # (B, E) share of time in decoding passes
    is_device_only: Tensor  # bool
    mode: Tensor  # long, index into MODES: what serves, never `auto`


def effective_mode(
    state: NetworkState, decision: Decision, physics: Physics, horizon: Horizon = "slot"
) -> Tensor:
    """Resolve each device's mode, (B, M) long: draft length 0 is plain server decoding."""
    index = (
        torch.full_like(decision.server, MODE_INDEX[physics.config.mode])
        if decision.mode is None
        else decision.mode
    )
    if decision.mode is not None or physics.config.mode == "auto":
        is_auto = index == MODE_INDEX["auto"]
        if is_auto.any():
            index = torch.where(is_auto, _best_mode(state, decision, physics, horizon), index)
    return torch.where(decision.draft_length == 0, MODE_INDEX["server_ar"], index)


def _best_mode(
    state: NetworkState, decision: Decision, physics: Physics, horizon: Horizon
) -> Tensor:
    """Find the lossless mode of least time per token, each tried by all devices, (B, M) long.

    What the modes of others do to one's own pass is second order, as with draft lengths.
    """
    tried = [MODE_INDEX[mode.name] for mode in CANDIDATES]
    tpot_s = [
        predict(
            state,
            replace(decision, mode=torch.full_like(decision.server, index)),
            physics,
            horizon,
        ).tpot_s
        for index in tried
    ]
    return torch.tensor(tried, device=decision.server.device)[torch.stack(tpot_s).argmin(0)]


def uplink_rate_bps(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Compute each device's uplink rate to its chosen server, (B, M)."""
    link = physics.config.link
    if link.interference == "orthogonal":
        return uplink_over_noise_bps(state, decision, link, link.uplink_noise_w_per_hz)
    return _shared_band_rates_bps(state, decision, physics, _work(state, decision, physics))[0]


def downlink_rate_bps(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Compute each device's downlink rate, (B, M).

    A server spreads its power evenly over its band and divides the band equally among the devices
    with a request.
    """
    link = physics.config.link
    if link.interference == "orthogonal":
        return downlink_over_noise_bps(state, decision, link, link.downlink_noise_w_per_hz)
    return _shared_band_rates_bps(state, decision, physics, _work(state, decision, physics))[1]


def _shared_band_rates_bps(
    state: NetworkState, decision: Decision, physics: Physics, work: _Work
) -> tuple[Tensor, Tensor]:
    """Compute both rates where all servers use the whole band, (B, M) each."""
    return shared_band_rates_bps(
        state, decision, physics.config.link, partial(_activity, state, decision, physics, work)
    )


def _activity(
    state: NetworkState,
    decision: Decision,
    physics: Physics,
    work: _Work,
    uplink_bps: Tensor,
    downlink_bps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the share of time in which devices (B, M) and servers (B, E) transmit now.

    Uploading devices transmit all the time, decoding ones while they send drafts, in rounds that
    wait for nobody; a server while it sends verdicts, in the shares of its band.
    """
    server = decision.server
    alone_s = state.forward_fixed_s.gather(1, server) + work.own_s
    parts = _parts(state, physics, work, server, uplink_bps, downlink_bps)
    parts = replace(parts, wait_s=torch.zeros_like(alone_s), verify_s=alone_s)
    round_s = per_mode(work.chosen, lambda mode: mode.round_time_s(parts))
    drafts = per_mode(work.chosen, lambda mode: mode.effort(parts).drafts)
    is_sent = state.upload_bits <= 0
    on_server = state.has_request & ~work.is_local
    decodes = (on_server & is_sent & (work.prefill_tokens <= 0)).to(alone_s.dtype)
    sends = (parts.uplink_s * drafts / round_s).clamp(max=1) * decodes
    devices = torch.where(on_server & ~is_sent, 1.0, sends)
    receives = (parts.downlink_s / round_s).clamp(max=1) * decodes
    share = downlink_share(state, server)
    return devices, sum_by_server(receives * share, server, state.num_servers)


@dataclass(frozen=True)
class _Work:
    """What each request asks of device, link and server under a decision, (B, M) each."""

    mode: Tensor
    chosen: dict[str, Tensor]  # bool per mode that occurs
    is_local: Tensor  # bool
    handover: Tensor  # bool
    prefill_tokens: Tensor
    gamma: Tensor
    draft_bits: Tensor  # of one draft
    verdict_bits: Tensor
    new_tokens: Tensor  # that it brings to a mean pass
    own_s: Tensor  # time that its rows and tokens add to a forward pass
    transfer_s: Tensor | None  # until its KV cache has come over the backhaul; None: it never does


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
    work = _work(state, decision, physics, horizon)
    uplink_bps, downlink_bps = _rates_bps(state, decision, physics, work)
    is_remote = state.has_request & ~work.is_local
    if work.transfer_s is not None and horizon == "slot":
        is_remote = is_remote & (work.transfer_s <= 0)
    queue, decodes = queue_prefill(state, server, is_remote, work.prefill_tokens, horizon)
    chunk = physics.config.batching.prefill_chunk_tokens
    base_s, own_s = pass_times_s(state, server, work.own_s, queue, chunk, horizon)
    parts = _parts(state, physics, work, server, uplink_bps, downlink_bps)
    if physics.config.service == "fluid":
        uses = ((decodes > 0) | (queue.backlog > 0)).to(work.own_s.dtype)
        fluid = fluid_service(state, server, work.own_s, uses, decision.compute_share)
        batch = _fluid_batch(fluid, work, parts, server, decodes)
        prefill = fluid.prefill_times(work.prefill_tokens)
    else:
        batch = _batch(state, server, physics, work, parts, base_s, own_s, decodes)
        prefill = prefill_times(
            state, server, work.prefill_tokens, queue, batch.busy, chunk, horizon
        )
    prefill_tokens_per_s, prefill_s, interference_s = prefill
    if work.transfer_s is not None:
        prefill_s = prefill_s + work.transfer_s
    interference_s = unless_local(work.chosen, interference_s)
    parts = replace(parts, wait_s=batch.wait_s, verify_s=batch.verify_s)
    round_s = per_mode(work.chosen, lambda mode: mode.round_time_s(parts))
    tokens = per_mode(work.chosen, lambda mode: mode.round_tokens(parts))
    tokens = tokens.clamp_min(1e-6)
    tpot_s = round_s / tokens
    accepted = per_mode(work.chosen, lambda mode: mode.accepted_tokens(tokens, parts.alpha))
    draft_s, drafts, new_tokens = effort(work.chosen, parts, round_s, work.new_tokens)
    upload_s = unless_local(work.chosen, state.upload_bits / uplink_bps)
    decode_s = state.expected_remaining_tokens * tpot_s
    return Prediction(
        uplink_bps=uplink_bps,
        downlink_bps=downlink_bps,
        upload_s=upload_s,
        prefill_tokens=work.prefill_tokens,
        prefill_tokens_per_s=prefill_tokens_per_s,
        prefill_s=prefill_s,
        draft_s=draft_s,
        draft_uplink_s=parts.uplink_s * drafts,
        wait_s=batch.wait_s,
        verify_s=batch.verify_s,
        downlink_s=parts.downlink_s,
        round_s=round_s,
        tokens_per_round=tokens,
        accepted_per_round=accepted,
        new_tokens=new_tokens,
        tpot_s=tpot_s,
        interference_s=interference_s,
        remaining_s=upload_s + prefill_s + interference_s + decode_s,
        draft_bits=work.draft_bits * drafts,
        verdict_bits=_verdict_bits(physics, work, parts, tokens),
        handover=work.handover,
        server_busy=batch.busy,
        is_device_only=work.is_local,
        mode=work.mode,
    )


def _verdict_bits(physics: Physics, work: _Work, parts: RoundParts, tokens: Tensor) -> Tensor:
    """Compute the mean bits that go down in a round, (B, M); cut drafts have their own."""
    if physics.config.draft_budget is None or "async" not in work.chosen:
        return work.verdict_bits
    accepts, rejects = (physics.codec.verdict_bits_given(rejected=r) for r in (False, True))
    cut_bits = accepts + (rejects - accepts) * (1 - parts.alpha) * tokens
    return torch.where(work.chosen["async"], cut_bits, work.verdict_bits)


def _rates_bps(
    state: NetworkState, decision: Decision, physics: Physics, work: _Work
) -> tuple[Tensor, Tensor]:
    if physics.config.link.interference == "reuse1":
        return _shared_band_rates_bps(state, decision, physics, work)
    return uplink_rate_bps(state, decision, physics), downlink_rate_bps(state, decision, physics)


def _work(
    state: NetworkState, decision: Decision, physics: Physics, horizon: Horizon = "slot"
) -> _Work:
    """Resolve modes, caches and payloads."""
    server, codec, alpha = decision.server, physics.codec, state.acceptance
    mode = effective_mode(state, decision, physics, horizon)
    chosen = _chosen(mode, decision, physics)
    is_local = chosen.get("device_only", torch.zeros_like(mode, dtype=torch.bool))
    moved = (server != state.server) & state.has_request & ~is_local
    cached, transfer_s = torch.where(moved, 0.0, state.kv_tokens), None
    if state.kv_arriving_tokens is not None:
        transfer_s = torch.where(is_local, 0.0, kv_transfer_s(state, server))
        cached = state.kv_tokens + state.kv_arriving_tokens
    missing = (state.context_tokens - cached).clamp_min(0)
    gamma = decision.draft_length.to(state.gain.dtype)
    if "server_ar" in chosen:
        gamma = gamma.masked_fill(chosen["server_ar"], 0)
    per_token_s = state.forward_per_token_s.gather(1, server)
    per_context_s = state.forward_per_context_s.gather(1, server)
    new_tokens = per_mode(chosen, lambda mode: mode.new_tokens(alpha, gamma))
    return _Work(
        mode=mode,
        chosen=chosen,
        is_local=is_local,
        handover=moved & (state.kv_tokens > 0),
        prefill_tokens=unless_local(chosen, missing),
        gamma=gamma,
        draft_bits=per_mode(chosen, lambda mode: mode.draft_bits(codec, gamma)),
        verdict_bits=per_mode(chosen, lambda mode: mode.verdict_bits(codec, alpha, gamma)),
        new_tokens=new_tokens,
        own_s=state.forward_per_row_s.gather(1, server)
        + new_tokens * per_token_s
        + state.context_tokens * per_context_s,
        transfer_s=transfer_s,
    )


def _chosen(mode: Tensor, decision: Decision, physics: Physics) -> dict[str, Tensor]:
    """Tell who is served by each mode that occurs; the others need not be worked out."""
    name = physics.config.mode
    if decision.mode is None and name != "auto":
        is_ar = decision.draft_length == 0
        if name == "server_ar":
            return {name: torch.ones_like(is_ar)}
        return {name: ~is_ar, "server_ar": is_ar}
    everybody = {name: mode == index for name, index in MODE_INDEX.items()}
    return {name: who for name, who in everybody.items() if who.any()}


def _parts(
    state: NetworkState,
    physics: Physics,
    work: _Work,
    server: Tensor,
    uplink_bps: Tensor,
    downlink_bps: Tensor,
) -> RoundParts:
    """Compute the parts of a round of one draft; waits and passes are still to be found."""
    draft_s = work.gamma * state.draft_time_s
    budget, first_uplink_s = physics.config.draft_budget, None
    if budget is not None:
        first_uplink_s = physics.codec.draft_bits(torch.ones_like(work.gamma)) / uplink_bps
    return RoundParts(
        draft_s=draft_s,
        uplink_s=work.draft_bits / uplink_bps,
        wait_s=draft_s,
        verify_s=draft_s,
        downlink_s=unless_local(work.chosen, work.verdict_bits / downlink_bps),
        rtt_s=state.rtt_s.gather(1, server),
        alpha=state.acceptance,
        gamma=work.gamma,
        window=physics.config.window,
        draft_budget=budget,
        first_uplink_s=first_uplink_s,
    )


def _batch(
    state: NetworkState,
    server: Tensor,
    physics: Physics,
    work: _Work,
    parts: RoundParts,
    base_s: Tensor,
    own_s: Tensor,
    decodes: Tensor,
) -> Batch:
    """Solve for waits and passes."""
    per_token_s = state.forward_per_token_s.gather(1, server)

    def rethink(wait_s: Tensor, verify_s: Tensor) -> tuple[Comeback, Tensor]:
        back = comeback(work.chosen, replace(parts, wait_s=wait_s, verify_s=verify_s))
        return back, own_s + (back.new_tokens - work.new_tokens) * per_token_s

    return solve_batching(
        _think_s(work, parts),
        own_s,
        decodes,
        server,
        base_s,
        state.foreign_rows,
        state.forward_per_row_s + state.forward_per_token_s,
        physics.config.batching,
        rethink if overlaps(work.chosen) else None,
    )


def _fluid_batch(
    fluid: FluidService, work: _Work, parts: RoundParts, server: Tensor, decodes: Tensor
) -> Batch:
    """Let everybody decode at its share; nobody waits."""
    parts = replace(parts, wait_s=torch.zeros_like(fluid.verify_s), verify_s=fluid.verify_s)
    think_s = (
        comeback(work.chosen, parts).think_s if overlaps(work.chosen) else _think_s(work, parts)
    )
    return fluid.batch(think_s, server, decodes)


def _think_s(work: _Work, parts: RoundParts) -> Tensor:
    """Sum what happens between two passes where nothing overlaps; 0 where nothing is sent."""
    away_s = parts.draft_s + parts.uplink_s + parts.downlink_s + parts.rtt_s
    return torch.where(work.draft_bits > 0, away_s, 0.0)
