"""The public entry: real draft/verify runs of a pair of models under a controller's decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from uara.decoding.fallback import Fallback, FallbackConfig
from uara.decoding.kernel import KernelSettings, Planner, VirtualKernel
from uara.decoding.kv import TransformerModel
from uara.decoding.models import ModelPair, tokenizer_hash
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.records import Records, RequestRecord, RoundRecord
from uara.decoding.refusals import check_supported
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import ForeignArrival, Request, SlotPlan
from uara.decoding.state_view import (
    ControllerPlanner,
    GainView,
    device_profiles,
    server_profiles,
)
from uara.decoding.traffic import ForwardRecord, FrameRecord
from uara.decoding.verifier import Contract
from uara.errors import UserError
from uara.network import Controller
from uara.prediction import Physics
from uara.serving.acceptance import AcceptanceTable
from uara.serving.payload import DEFAULT_TAIL_DRAWS
from uara.world.config import WorldConfig

RULE_CODES = {
    "ids": RuleCode.IDS,
    "id_prob": RuleCode.ID_PROB,
    "topk": RuleCode.TOPK,
    "full": RuleCode.FULL,
}


class DecodingConfig(BaseModel):
    """What a real run needs beyond the world and its physics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        0.7,
        ge=0,
        description="of both models; 0, or the rule `greedy`, takes the most likely token",
    )
    sample_top_k: int = Field(0, ge=0, description="keep the K most likely tokens; 0 keeps all")
    sample_top_p: float = Field(1.0, gt=0, le=1, description="keep this mass of likely tokens")
    tail_draws: int = Field(
        DEFAULT_TAIL_DRAWS, ge=1, description="target draws that go with a rejection (`id_prob`)"
    )
    read_token_s: float = Field(
        0.25e-3,
        ge=0,
        description="time per prompt token that a phone's draft model reads: 2 x 1.24e9 operations "
        "at 10 TOPS, a quarter of a phone NPU's peak",
    )
    seed: int = Field(0, description="of all draws")
    check_draws: bool = Field(
        False, description="keep every draw that decided a token, and stop if one decides twice"
    )
    records: Records = Field(
        "all",
        description="kept beside the requests: `none`, one per round, or `all`: one per frame and "
        "forward too",
    )
    fallback: FallbackConfig | None = Field(
        None,
        description="choose draft lengths per request from running estimates, beginning with the "
        "server alone; null: take the controller's",
    )
    drain_slots: int = Field(
        4000, gt=0, description="slots after the last arrival at which a run is stopped"
    )


@dataclass(frozen=True)
class DecodingResult:
    """Records of a run.

    Attributes:
        requests: in the order of their numbers.
        rounds: in the order of their ends.
        controller: name.
        pair: name.
        server_busy: per server, the share of the run's time spent computing.
        duration_s: of the run, on the virtual clock.
        is_lossy: whether residuals were cut, so that the tokens' law is not the target's.
        plans: of each slot.
        frames: in the order in which they were sent; kept with `records: all`.
        forwards: in the order of their starts; likewise.
        device_busy: per device, the share of its requests' time spent drafting; nan without any.
    """

    requests: list[RequestRecord]
    rounds: list[RoundRecord]
    controller: str
    pair: str
    server_busy: list[float]
    duration_s: float
    is_lossy: bool = False
    plans: list[SlotPlan] = field(default_factory=list)
    frames: list[FrameRecord] = field(default_factory=list)
    forwards: list[ForwardRecord] = field(default_factory=list)
    device_busy: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Compute means over requests, and ratios of sums over the run."""
        requests = [record for record in self.requests if not record.refusal]
        count, tokens = len(requests), sum(len(record.tokens) for record in requests)
        tested = sum(record.tested for record in requests)
        accepted = sum(record.accepted for record in requests)
        verifications = sum(record.verifications for record in requests)
        return {
            "requests": count,
            "tokens": tokens,
            "ttft_s": _ratio(sum(record.ttft_s for record in requests), count),
            "tpot_s": _ratio(sum(record.tpot_s for record in requests), count),
            "e2e_s": _ratio(sum(record.e2e_s for record in requests), count),
            "ttft_p95_s": _p95([record.ttft_s for record in requests]),
            "tpot_p95_s": _p95([record.tpot_s for record in requests]),
            "e2e_p95_s": _p95([record.e2e_s for record in requests]),
            "memory_wait_s": _ratio(sum(record.memory_wait_s for record in requests), count),
            "acceptance": _ratio(accepted, tested),
            "tokens_per_verification": _ratio(
                sum(record.verified for record in requests), verifications
            ),
            "uplink_bytes_per_token": _ratio(
                sum(r.uplink_bytes - r.prompt_bytes for r in requests), tokens
            ),
            "downlink_bytes_per_token": _ratio(sum(r.downlink_bytes for r in requests), tokens),
            "cut_blocks": sum(record.cut_blocks for record in requests),
            "drafted_tokens": sum(record.drafted for record in requests),
            "accepted_tokens": accepted,
            "rejected_tokens": tested - accepted,
            "rolled_back_tokens": sum(record.rolled_back for record in requests),
            "late_tokens": sum(record.late for record in requests),
            "device_idle": 1 - _mean(self.device_busy),
            "server_idle": 1 - _mean(self.server_busy),
            "capped": sum(record.is_capped for record in requests),
            "handovers": sum(record.handovers for record in requests),
        } | (self._bias(requests, tokens) if self.is_lossy else {})

    def acceptance_by_position(self) -> list[float]:
        """Compute, per place in a draft, the share of tokens tested there that passed."""
        tested: list[int] = []
        passed: list[int] = []
        for record in self.rounds:
            while len(tested) < record.tested:
                tested.append(0)
                passed.append(0)
            for i in range(record.tested):
                tested[i] += 1
                passed[i] += i < record.accepted
        return [own / whole for own, whole in zip(passed, tested, strict=True)]

    def _bias(self, requests: Sequence[RequestRecord], tokens: int) -> dict[str, float]:
        """Compute how far a lossy run may be from the target's law.

        The share of a rejection's residual that is left out is the distance in total variation of
        the token drawn there; its sum over rejections estimates, without bias, a bound on that of
        the whole answers (the mass outside the Top-K, summed over positions).
        """
        lost = [share for record in requests for share in record.lost_residuals]
        return {
            "lost_residual_per_rejection": _ratio(sum(lost), len(lost)),
            "total_variation_per_token": _ratio(sum(lost), tokens),
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95)) if values else math.nan


def _mean(shares: Sequence[float]) -> float:
    known = [share for share in shares if not math.isnan(share)]
    return _ratio(sum(known), len(known))


def _device_busy(kernel: VirtualKernel) -> list[float]:
    """Divide each device's time of drafting by the time in which it had a request."""
    alive_s = [0.0] * len(kernel.devices)
    for record in kernel.recorder.requests.values():
        alive_s[record.device] += record.finish_s - record.start_s
    # The last draft step of an answer may end behind it.
    return [
        min(_ratio(node.draft_s, own_s), 1.0)
        for node, own_s in zip(kernel.devices, alive_s, strict=True)
    ]


def run_decoding(
    pair: ModelPair,
    requests: Sequence[Request],
    gains: GainView,
    controller: Controller,
    *,
    world: WorldConfig,
    physics: Physics,
    acceptance: AcceptanceTable,
    config: DecodingConfig,
    foreign: Sequence[ForeignArrival] = (),
) -> DecodingResult:
    """Run requests to their ends, with the controller asked at every slot boundary.

    Args:
        pair: draft and target.
        requests: with token ids of the pair's tokenizer.
        gains: one world of a channel bank.
        controller: decides; it sees the running system only.
        world: machines, budgets, slot length, task types.
        physics: link model, codec, mode, longest draft.
        acceptance: what the running estimate starts from, per task.
        config: sampling and seeds.
        foreign: load of other networks on the servers.

    Raises:
        UserError: if requests, gains and machines do not fit together, or the world has options
            that real runs do not have.
    """
    check_supported(world, physics.config)
    profiles = server_profiles(world)
    num_devices = gains.gain.shape[1]
    check_requests(pair, requests, num_devices, min(p.kv_capacity_tokens for p in profiles))
    if gains.gain.shape[2] != len(profiles):
        raise UserError(
            f"the gains have {gains.gain.shape[2]} servers but the world names {len(profiles)}; "
            "give a bank of this world"
        )
    planner = _planner(controller, gains, world, physics, acceptance, config)
    kernel = VirtualKernel(
        TransformerModel(pair.draft, pair.vocab_size),
        TransformerModel(pair.target, pair.vocab_size),
        device_profiles(world, num_devices, config.read_token_s),
        profiles,
        requests,
        planner,
        kernel_settings(pair, world, physics, config),
        foreign,
    )
    recorder = kernel.run()
    return DecodingResult(
        requests=[recorder.requests[sid] for sid in sorted(recorder.requests)],
        rounds=recorder.rounds,
        frames=recorder.frames,
        forwards=recorder.forwards,
        device_busy=_device_busy(kernel),
        controller=controller.name,
        pair=pair.name,
        server_busy=[min(_ratio(node.busy_s, kernel.now), 1.0) for node in kernel.servers],
        duration_s=kernel.now,
        is_lossy=physics.codec.is_lossy,
        plans=kernel.plans,
    )


def _planner(
    controller: Controller,
    gains: GainView,
    world: WorldConfig,
    physics: Physics,
    acceptance: AcceptanceTable,
    config: DecodingConfig,
) -> Planner:
    rule = "greedy" if config.temperature == 0 else physics.codec.rule
    means = [acceptance.of(rule, task.name).mean for task in world.requests.tasks]
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "controller") >> 1)
    planner = ControllerPlanner(controller, gains, world, physics, torch.tensor(means), generator)
    if config.fallback is None:
        return planner
    return Fallback(planner, config.fallback, physics.config.mode, physics.config.window)


def kernel_settings(
    pair: ModelPair, world: WorldConfig, physics: Physics, config: DecodingConfig
) -> KernelSettings:
    """Say what a run of a world needs besides models, requests and plans."""
    codec = physics.codec
    is_greedy = codec.rule == "greedy" or config.temperature == 0
    contract = Contract(
        rule=RuleCode.GUMBEL if codec.rule == "gumbel" else RULE_CODES[codec.name],
        sampling=GREEDY
        if is_greedy
        else Sampling(config.temperature, config.sample_top_k, config.sample_top_p),
        top_k=min(codec.top_k, pair.vocab_size),
        tail_draws=config.tail_draws,
        probability_bits=codec.probability_bits,
        is_lossy=codec.is_lossy,
    )
    return KernelSettings(
        slot_s=world.slot_s,
        contract=contract,
        session_seed=lambda sid: derive_seed(config.seed, "session", sid),
        frame_overhead_bytes=codec.frame_overhead_bytes,
        prefill_chunk_tokens=physics.config.batching.prefill_chunk_tokens,
        tokenizer_hash=tokenizer_hash(pair.tokenizer),
        drain_slots=config.drain_slots,
        checks_draws=config.check_draws,
        records=config.records,
        mode=physics.config.mode,
        window=physics.config.window,
        draft_budget=physics.config.draft_budget,
        shadows=config.fallback is not None,
    )


def check_requests(
    pair: ModelPair, requests: Sequence[Request], num_devices: int, kv_capacity_tokens: int
) -> None:
    """Check that every request can be served.

    Raises:
        UserError: naming the first request that cannot, and why.
    """
    if not requests:
        raise UserError("no request was given; give at least one")
    if len({request.sid for request in requests}) < len(requests):
        raise UserError("two requests have the same number; give each its own sid")
    for request in requests:
        text, priced = len(request.text), request.prompt_tokens
        name = f"request {request.sid}"
        if not 0 <= request.device < num_devices:
            raise UserError(
                f"{name} is of device {request.device}; allowed: 0 to {num_devices - 1}"
            )
        if not 1 <= text <= priced or request.max_new < 1:
            raise UserError(
                f"{name} has {text} text tokens, {priced} prompt tokens and {request.max_new} "
                "answer tokens; give at least 1 of each and no more text than prompt"
            )
        if text + request.max_new > pair.context_tokens:
            raise UserError(
                f"{name} needs {text} + {request.max_new} tokens of context; pair '{pair.name}' "
                f"has {pair.context_tokens}: shorten the text or the answer"
            )
        if priced + request.max_new > kv_capacity_tokens:
            raise UserError(
                f"{name} needs KV memory for {priced + request.max_new} tokens; the smallest "
                f"server has {kv_capacity_tokens}: shorten the prompt"
            )
