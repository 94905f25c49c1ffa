"""Runs a plan of two edge nodes with real models under a virtual clock, batch by batch.

A batch drafts at the small site, one forward per token for all of its members, and is verified at
the macro site in one ragged forward; batches take turns, so that one is drafted while another is
verified. Tokens are real and times those of the plan's passes. A plan reckons with the tokens that
a round brings on average; here a batch goes on until its slowest member has its answer, and members
that have theirs leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Batch, Plan
from uara.control.plan.replay import (
    Replay,
    RoundWork,
    Span,
    draft_s,
    replay,
    upload_spans,
    verify_s,
)
from uara.decoding.contract import Contract
from uara.decoding.kv import Cache, Feed, Floats, SequenceModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.randomness import Draws
from uara.decoding.row import Pairs
from uara.decoding.rules import Outcome, warp
from uara.decoding.scenario import Request
from uara.decoding.verifier import Work
from uara.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BatchRun:
    """What became of one batch.

    Attributes:
        member_rounds: that each of its tasks took, in the plan's order.
        completion_s: last verdict on its slowest member.
    """

    member_rounds: tuple[int, ...]
    completion_s: float

    @property
    def rounds(self) -> int:
        """Rounds of the batch: those of its slowest member."""
        return max(self.member_rounds)


@dataclass(frozen=True)
class PlanRun:
    """What became of a plan.

    Attributes:
        spans: of both nodes, and the uploads.
        batches: in the order of the plan.
        answers: tokens by task.
        accepted: draft tokens over all tasks; `tested` likewise.
        tested: accepted ones and first rejected ones.
    """

    spans: tuple[Span, ...]
    batches: tuple[BatchRun, ...]
    answers: dict[int, tuple[int, ...]]
    accepted: int
    tested: int

    @property
    def completion_s(self) -> float:
        """When the last answer was there."""
        return max(batch.completion_s for batch in self.batches)

    @property
    def acceptance(self) -> float:
        """Accepted over tested draft tokens."""
        return self.accepted / max(self.tested, 1)


@dataclass(frozen=True)
class Excess:
    """Completion of one batch, or of the whole plan, and what moves it from planned to executed.

    The plan is replayed with other numbers of rounds, all else as planned: those that the members
    took on average, then those of the slowest. What is left is that members leave the batch, which
    a plan does not reckon with, and that answers grow unevenly.

    Attributes:
        planned_s: as the plan has it.
        acceptance_s: more by the rounds that members took on average.
        slowest_s: more because the batch waits for its slowest member.
        leaving_s: more (less, as a rule) because members leave, and batches wait for one another
            otherwise.
        executed_s: as it was.
    """

    planned_s: float
    acceptance_s: float
    slowest_s: float
    leaving_s: float
    executed_s: float


@dataclass
class _Member:
    """One task: its draft's cache, its draws and its answer so far."""

    request: Request
    cache: Cache
    contract: Contract
    draws: Draws
    answer: list[int] = field(default_factory=list)
    epoch: int = 0
    rounds: int = 0
    tokens: list[int] = field(default_factory=list)
    rows: list[Pairs] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether the whole answer is there."""
        return len(self.answer) >= self.request.max_new

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt text and answer."""
        return (*self.request.text, *self.answer)

    def feed(self) -> Feed:
        """Take what the draft has not read."""
        new = (*self.context, *self.tokens)[self.cache.length :]
        return Feed(self.cache, new, len(new) - 1)

    def draw(self, logits: Floats) -> None:
        """Draft a token."""
        law = self.contract.draft_law(warp(logits, self.contract.draft_sampling))
        position = len(self.context) + len(self.tokens)
        token = self.contract.draw_draft(law, position, self.draws.in_epoch(self.epoch))
        sent = self.contract.sent(law, token)
        self.tokens.append(token)
        self.rows += [sent] if len(sent) else []

    def work(self) -> Work:
        """Describe its part of the verification."""
        return Work(
            self.request.sid, self.context, tuple(self.tokens), tuple(self.rows), self.epoch
        )

    def take(self, outcome: Outcome) -> None:
        """Commit what was decided; what lies behind the longest answer is dropped."""
        assert outcome.token is not None, "both nodes know all rows, so no draw is left to either"
        drafted, stands = len(self.tokens), len(self.context) + outcome.accepted
        self.epoch += outcome.accepted < drafted
        more = [*self.tokens[: outcome.accepted], outcome.token]
        self.answer = [*self.answer, *more][: self.request.max_new]
        self.cache.roll_back(min(self.cache.length, stands))
        self.rounds += 1
        self.tokens, self.rows = [], []


def run_planned(
    plan: Plan,
    config: HetEdgeConfig,
    requests: Sequence[Request],
    draft: SequenceModel,
    target: SequenceModel,
    contract: Contract,
    session_seed: Callable[[int], int],
    progress: Progress | None = None,
) -> PlanRun:
    """Run a plan with real models.

    Args:
        plan: what to do.
        config: which it was made for; its passes give the times.
        requests: one per task of the plan, `sid` its number.
        draft: model of the small site.
        target: model of the macro site.
        contract: of every session; one by which the macro site draws after a rejection.
        session_seed: gives a task's seed.
        progress: called with (answer tokens so far, answer tokens in all).

    Raises:
        UserError: if tasks of the plan have no request.
    """
    by_sid = {request.sid: request for request in requests}
    planned = {k for batch in plan.batches for k in batch.tasks}
    if missing := sorted(planned - set(by_sid)):
        raise UserError(f"tasks {missing} of the plan have no request; give one per task")
    sites = _Sites(config, draft, ModelVerifier(target), progress)
    for k in sorted(planned):
        sites.open(by_sid[k], contract, session_seed(k))
    return sites.run(plan)


class _Sites:
    """Both nodes: when they are free, and the members of all batches."""

    def __init__(
        self,
        config: HetEdgeConfig,
        draft: SequenceModel,
        verifier: ModelVerifier,
        progress: Progress | None,
    ) -> None:
        self._config, self._draft, self._verifier = config, draft, verifier
        self._progress = progress
        self._members: dict[int, _Member] = {}
        self._spans: list[Span] = []
        self._drafter_free_s = self._verifier_free_s = 0.0
        self._accepted = self._tested = 0

    def open(self, request: Request, contract: Contract, seed: int) -> None:
        """Let a task in."""
        self._members[request.sid] = _Member(
            request, self._draft.new_cache(), contract, Draws(seed)
        )
        self._verifier.open(request.sid, contract, Draws(seed))

    def run(self, plan: Plan) -> PlanRun:
        """Serve waves in turn, and in a wave batches in turn, round by round."""
        ends = [batch.release_s for batch in plan.batches]
        for wave in sorted({batch.wave for batch in plan.batches}):
            members = [m for m, batch in enumerate(plan.batches) if batch.wave == wave]
            groups = [members] if plan.is_pipelined else [[m] for m in members]
            for group in groups:
                self._serve(plan, group, ends)
        return PlanRun(
            spans=(*upload_spans(plan), *self._spans),
            batches=tuple(
                BatchRun(tuple(self._members[k].rounds for k in batch.tasks), ends[m])
                for m, batch in enumerate(plan.batches)
            ),
            answers={k: tuple(member.answer) for k, member in self._members.items()},
            accepted=self._accepted,
            tested=self._tested,
        )

    def _serve(self, plan: Plan, group: list[int], ends: list[float]) -> None:
        """Serve batches that take turns, to the end of the slowest; `ends` are their verdicts."""
        gate_s, number = self._verifier_free_s, 0
        while group:
            number += 1
            for m in group:
                ready_s = max(ends[m], gate_s)
                ends[m] = self._round(plan.batches[m], m, number, ready_s, plan.is_pipelined)
            group = [m for m in group if self._alive(plan.batches[m])]

    def _alive(self, batch: Batch) -> list[_Member]:
        return [self._members[k] for k in batch.tasks if not self._members[k].is_finished]

    def _round(
        self, batch: Batch, index: int, number: int, ready_s: float, is_pipelined: bool
    ) -> float:
        """Draft and verify one round of a batch; return when its verdicts are there."""
        live = self._alive(batch)
        longest = max(len(member.answer) for member in live)
        work = RoundWork(len(live), batch.draft_length, batch.input_tokens + longest, number == 1)
        start_s = max(ready_s, self._drafter_free_s)
        if not is_pipelined:
            start_s = max(start_s, self._verifier_free_s)
        self._drafter_free_s = start_s + draft_s(self._config, work)
        self._spans.append(Span("draft", index, number, start_s, self._drafter_free_s))
        for _ in range(batch.draft_length):
            rows = self._draft.forward([member.feed() for member in live])
            for member, logits in zip(live, rows, strict=True):
                member.draw(logits[-1])
        start_s = max(self._drafter_free_s, self._verifier_free_s)
        self._verifier_free_s = start_s + verify_s(self._config, work)
        self._spans.append(Span("verify", index, number, start_s, self._verifier_free_s))
        outcomes = self._verifier.forward([member.work() for member in live])
        for member, outcome in zip(live, outcomes, strict=True):
            assert outcome is not None, "a verification decides"
            self._accepted += outcome.accepted
            self._tested += min(outcome.accepted + 1, batch.draft_length)
            member.take(outcome)
            if member.is_finished:
                self._verifier.close(member.request.sid)
        if self._progress is not None:
            done = sum(len(member.answer) for member in self._members.values())
            self._progress(done, sum(m.request.max_new for m in self._members.values()))
        return self._verifier_free_s


def excess(plan: Plan, config: HetEdgeConfig, run: PlanRun) -> tuple[list[Excess], Excess]:
    """Tell planned from executed completion, of each batch and of the whole.

    Args:
        plan: that was executed.
        config: which it was made for.
        run: what became of it.
    """
    average = [max(1, round(float(np.mean(batch.member_rounds)))) for batch in run.batches]
    slowest = [batch.rounds for batch in run.batches]
    replays = [_with_rounds(plan, config, rounds) for rounds in (None, average, slowest)]
    per_batch = [
        _excess([seen.completion_s[m] for seen in replays], run.batches[m].completion_s)
        for m in range(len(plan.batches))
    ]
    whole = [max(seen.completion_s) for seen in replays]
    return per_batch, _excess(whole, run.completion_s)


def _with_rounds(plan: Plan, config: HetEdgeConfig, rounds: Sequence[int] | None) -> Replay:
    if rounds is None:
        return replay(plan, config)
    batches = tuple(
        replace(batch, rounds=count) for batch, count in zip(plan.batches, rounds, strict=True)
    )
    return replay(replace(plan, batches=batches), config)


def _excess(steps: Sequence[float], executed_s: float) -> Excess:
    planned_s, average_s, slowest_s = steps
    return Excess(
        planned_s=planned_s,
        acceptance_s=average_s - planned_s,
        slowest_s=slowest_s - average_s,
        leaving_s=executed_s - slowest_s,
        executed_s=executed_s,
    )
