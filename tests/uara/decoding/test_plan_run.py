"""A plan of two edge nodes run with models: its times, its tokens, and its slowest member."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Plan, make_plan
from uara.control.plan.replay import replay
from uara.control.plan.tasks import draw_tasks
from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.contract import Contract
from uara.decoding.exactness import check_coupled_exact, check_greedy_exact
from uara.decoding.kv import TransformerModel
from uara.decoding.plan_run import PlanRun, excess, run_planned
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.records import RequestRecord
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import Request
from uara.errors import UserError

SAMPLED = Contract(RuleCode.FULL, Sampling(), 1, 1)
CONTRACTS = {
    "greedy": Contract(RuleCode.IDS, GREEDY, 1, 1),
    "gumbel": Contract(RuleCode.GUMBEL, Sampling(0.8), 1, 1),
    "maxc": Contract(RuleCode.FULL, Sampling(0.8), 1, 1),
}


def cell(users: int, answer: int, acceptance: float, **more: Any) -> tuple[HetEdgeConfig, Plan]:
    config = HetEdgeConfig.model_validate(
        {"users": users, "output_tokens_max": answer, "acceptance": acceptance,
         "memory_bytes": 2.2e9, "draft_length_max": 5} | more
    )  # fmt: skip
    return config, make_plan(config, draw_tasks(config, 1))


def asked(config: HetEdgeConfig, vocab_size: int = 2) -> list[Request]:
    generator = np.random.default_rng(1)
    return [
        Request(
            sid, sid, 0.0, tuple(generator.integers(0, vocab_size, 3 + sid % 4).tolist()), 10,
            config.output_tokens_max,
        )
        for sid in range(config.users)
    ]  # fmt: skip


def seed_of(sid: int) -> int:
    return derive_seed(3, sid)


@pytest.mark.parametrize("memory_rule", ["per_batch", "in_flight"])
def test_where_all_drafts_pass_the_execution_is_the_plan_span_by_span(memory_rule: str) -> None:
    config, plan = cell(12, 40, 1.0, memory_rule=memory_rule)
    run = run_planned(plan, config, asked(config), *bernoulli_pair(1.0), SAMPLED, seed_of)
    assert len(plan.batches) > 1
    key = "node", "batch", "round"
    planned = {tuple(getattr(s, k) for k in key): s for s in replay(plan, config).spans}
    seen = {tuple(getattr(s, k) for k in key): s for s in run.spans}
    assert planned.keys() == seen.keys()
    for name, span in planned.items():
        assert (seen[name].start_s, seen[name].end_s) == pytest.approx((span.start_s, span.end_s))
    assert run.completion_s == pytest.approx(plan.completion_s)
    whole = excess(plan, config, run)[1]
    assert (whole.acceptance_s, whole.slowest_s) == (0, 0)
    assert whole.leaving_s == pytest.approx(0, abs=1e-9)


def test_a_batch_ends_with_its_slowest_member() -> None:
    config, plan = cell(16, 64, 0.7)
    run = run_planned(plan, config, asked(config), *bernoulli_pair(0.7), SAMPLED, seed_of)
    assert run.acceptance == pytest.approx(0.7, abs=0.05)
    for m, (batch, seen) in enumerate(zip(plan.batches, run.batches, strict=True)):
        own = [span for span in run.spans if span.batch == m and span.node == "verify"]
        assert len(own) == seen.rounds == max(seen.member_rounds)
        assert own[-1].end_s == seen.completion_s
        assert len(seen.member_rounds) == len(batch.tasks)
    per_batch, whole = excess(plan, config, run)
    for moved in (*per_batch, whole):
        parts = moved.planned_s + moved.acceptance_s + moved.slowest_s + moved.leaving_s
        assert parts == pytest.approx(moved.executed_s)
    assert whole.planned_s == pytest.approx(plan.completion_s)
    assert whole.executed_s == run.completion_s
    # The mean of rounds is what the plan reckons with; the largest of several is above it.
    rounds = np.concatenate([batch.member_rounds for batch in run.batches])
    assert rounds.mean() == pytest.approx(plan.batches[0].rounds, rel=0.1)
    assert whole.slowest_s > 0.02 * whole.planned_s
    assert whole.leaving_s < 0


def test_without_a_pipeline_nothing_overlaps() -> None:
    config, plan = cell(12, 24, 0.7)
    serial = replace(plan, is_pipelined=False)
    run = run_planned(serial, config, asked(config), *bernoulli_pair(0.7), SAMPLED, seed_of)
    own = sorted((s for s in run.spans if s.node != "uplink"), key=lambda s: s.start_s)
    assert all(a.end_s <= b.start_s + 1e-12 for a, b in pairwise(own))
    assert run.completion_s > run_planned(
        plan, config, asked(config), *bernoulli_pair(0.7), SAMPLED, seed_of
    ).completion_s  # fmt: skip


@pytest.mark.parametrize("rule", CONTRACTS)
def test_tokens_are_those_of_single_requests(
    rule: str, random_draft: Any, random_target: Any
) -> None:
    config, plan = cell(5, 12, 0.7)
    requests, contract = asked(config, 48), CONTRACTS[rule]
    draft, target = TransformerModel(random_draft), TransformerModel(random_target)

    def play(which: Plan) -> PlanRun:
        return run_planned(which, config, requests, draft, target, contract, seed_of)

    run = play(plan)
    assert max(len(batch.tasks) for batch in plan.batches) > 2
    alone = tuple(replace(batch, tasks=(k,)) for batch in plan.batches for k in batch.tasks)
    assert play(replace(plan, batches=alone)).answers == run.answers
    assert 0 < run.acceptance < 1
    records = [
        RequestRecord(sid=k, device=k, task=0, arrival_s=0.0, prompt_tokens=9, text_tokens=3,
                      tokens=list(tokens))
        for k, tokens in run.answers.items()
    ]  # fmt: skip
    if rule == "greedy":
        assert check_greedy_exact(target, requests, records).equal == 5
    if rule == "gumbel":
        check = check_coupled_exact(target, requests, records, contract.sampling, seed_of)
        assert check.equal == 5


def test_a_task_without_a_request_is_told() -> None:
    config, plan = cell(4, 8, 0.7)
    with pytest.raises(UserError, match=r"tasks \[3\] of the plan have no request"):
        run_planned(plan, config, asked(config)[:3], *bernoulli_pair(0.7), SAMPLED, seed_of)
