"""Plays a plan event by event, apart from the planner's formulas: order, memory and bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Batch, Plan

Node = Literal["uplink", "draft", "verify"]


@dataclass(frozen=True)
class Span:
    """A node that works for a batch."""

    node: Node
    batch: int
    round: int  # 0 for the upload
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Replay:
    """What happened."""

    spans: tuple[Span, ...]
    completion_s: tuple[float, ...]  # per batch
    memory_bytes: tuple[tuple[float, float], ...]  # of the draft node from each time on
    bandwidth_hz: tuple[tuple[float, float], ...]  # in use from each time on

    @property
    def peak_memory_bytes(self) -> float:
        """Most memory that weights and all caches took."""
        return max(held for _, held in self.memory_bytes)

    @property
    def peak_bandwidth_hz(self) -> float:
        """Most bandwidth in use."""
        return max(used for _, used in self.bandwidth_hz)


def replay(plan: Plan, config: HetEdgeConfig) -> Replay:
    """Play a plan.

    The draft node takes batches in turn and waits for the one whose turn it is; the verifier takes
    drafts as they come; a wave begins when the one before is done. A cache is held from a batch's
    first draft to its last verdict.

    Args:
        plan: what to do.
        config: which the plan was made for.
    """
    spans = upload_spans(plan)
    drafter_free_s = verifier_free_s = gate_s = 0.0
    wave = 0
    verdict_s = [batch.release_s for batch in plan.batches]
    for turn in _turns(plan):
        batch = plan.batches[turn.batch]
        if batch.wave > wave or not plan.is_pipelined:
            wave, gate_s = batch.wave, verifier_free_s
        ready_s = max(verdict_s[turn.batch], gate_s)
        start_s = max(ready_s, drafter_free_s)
        drafter_free_s = start_s + draft_s(config, _work(config, batch, turn.round))
        spans.append(Span("draft", turn.batch, turn.round, start_s, drafter_free_s))
        start_s = max(drafter_free_s, verifier_free_s)
        verifier_free_s = start_s + verify_s(config, _work(config, batch, turn.round))
        spans.append(Span("verify", turn.batch, turn.round, start_s, verifier_free_s))
        verdict_s[turn.batch] = verifier_free_s
    return Replay(
        spans=tuple(spans),
        completion_s=tuple(verdict_s),
        memory_bytes=_memory(plan, spans),
        bandwidth_hz=_bandwidth(plan),
    )


@dataclass(frozen=True)
class RoundWork:
    """What a round of a batch asks of both nodes, every task padded to the longest."""

    tasks: int
    draft_length: int
    context_tokens: float  # of prompt and answer when it begins
    is_first: bool  # nothing of the prompt has been read


def draft_s(config: HetEdgeConfig, work: RoundWork) -> float:
    """Time the draft passes of one round, pass by pass."""
    shape, law = config.cost.draft, config.draft_gpu.pass_time(config.draft)
    total_s = 0.0
    for index in range(1, work.draft_length + 1):
        if work.is_first and index == 1:
            new, attended = work.context_tokens, work.context_tokens
        else:
            new, attended = 1, work.context_tokens + index
        flop = new * (shape.matrix_flop + shape.attention_flop * attended)
        total_s += law.s_per_flop * flop * work.tasks + law.fixed_s
    return total_s


def verify_s(config: HetEdgeConfig, work: RoundWork) -> float:
    """Time the verify pass of one round."""
    shape, law = config.cost.verify, config.verify_gpu.pass_time(config.verify)
    new = work.draft_length + (work.context_tokens if work.is_first else 1)
    cached = 0.0 if work.is_first else work.context_tokens
    flop = new * (shape.matrix_flop + shape.attention_flop * (cached + new))
    return law.s_per_flop * flop * work.tasks + law.fixed_s


def _work(config: HetEdgeConfig, batch: Batch, number: int) -> RoundWork:
    confirmed = batch.input_tokens + (number - 1) * _tokens(config, batch)
    return RoundWork(len(batch.tasks), batch.draft_length, confirmed, number == 1)


def _tokens(config: HetEdgeConfig, batch: Batch) -> float:
    """Add up the chances that a draft token, and all before it, are accepted, and the bonus."""
    return sum(config.acceptance**k for k in range(batch.draft_length + 1))


@dataclass(frozen=True)
class _Turn:
    batch: int
    round: int


def _turns(plan: Plan) -> list[_Turn]:
    """List who is served when: waves in turn, in a wave batches in turn, round by round."""
    turns = []
    for wave in sorted({batch.wave for batch in plan.batches}):
        members = [m for m, batch in enumerate(plan.batches) if batch.wave == wave]
        if plan.is_pipelined:
            most = max(plan.batches[m].rounds for m in members)
            turns += [
                _Turn(m, number)
                for number in range(1, most + 1)
                for m in members
                if number <= plan.batches[m].rounds
            ]
        else:
            turns += [
                _Turn(m, number) for m in members for number in range(1, plan.batches[m].rounds + 1)
            ]
    return turns


def upload_spans(plan: Plan) -> list[Span]:
    """Tell from when to when the prompts of each batch are sent."""
    return [_upload_span(plan, number) for number in range(len(plan.batches))]


def _upload_span(plan: Plan, number: int) -> Span:
    tasks = plan.batches[number].tasks
    start_s = min(plan.upload_start_s[k] for k in tasks)
    return Span("uplink", number, 0, start_s, max(plan.upload_end_s[k] for k in tasks))


def _memory(plan: Plan, spans: list[Span]) -> tuple[tuple[float, float], ...]:
    """Follow the memory of the draft node over time."""
    changes = []
    for number, batch in enumerate(plan.batches):
        own = [span for span in spans if span.batch == number and span.round > 0]
        changes.append((own[0].start_s, batch.cache_bytes))
        changes.append((own[-1].end_s, -batch.cache_bytes))
    return _summed(changes, plan.weight_bytes)


def _bandwidth(plan: Plan) -> tuple[tuple[float, float], ...]:
    changes = []
    for own in zip(plan.bandwidth_hz, plan.upload_start_s, plan.upload_end_s, strict=True):
        used_hz, start_s, end_s = own
        changes += [(start_s, used_hz), (end_s, -used_hz)]
    return _summed(changes, 0.0)


def _summed(changes: list[tuple[float, float]], level: float) -> tuple[tuple[float, float], ...]:
    """Add changes up in time; at one instant what is given back comes first."""
    steps = [(0.0, level)]
    for time_s, change in sorted(changes):
        level += change
        steps.append((time_s, level))
    return tuple(steps)
