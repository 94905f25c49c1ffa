"""Parallel modes through the whole runtime: the same stream under any schedule, and its law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as search
from hypothesis import strategies as st

from tests.uara.decoding.test_law import DEVICES, MUTANTS, TEXT, TOKENS, VOCAB, p_value, target_law
from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.exactness import check_greedy_exact
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import TransformerModel
from uara.decoding.nodes import Jitter, StalledRunError
from uara.decoding.overlap import Overlap
from uara.decoding.parallel_session import ParallelSession
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.session import Stage
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime
from uara.serving.modes import MODES, RoundParts
from uara.serving.modes.psd import TIME_SPREAD

SAMPLED = (RuleCode.ID_PROB, RuleCode.TOPK, RuleCode.FULL, RuleCode.GUMBEL)
FORWARD = ForwardTime(0.03, 0.002, 0.001, 0.0)


def run(
    table_model: Any,
    planner: Any,
    code: RuleCode,
    *,
    count: int,
    max_new: int,
    seed: int = 0,
    rtt_s: float = 0.03,
    watchdog_s: float | None = 60.0,
    **more: Any,
) -> VirtualKernel:
    """Play `count` requests of two table models under one schedule."""
    sampling = GREEDY if code is RuleCode.IDS else Sampling(temperature=0.8)
    settings = KernelSettings(
        0.4,
        Contract(code, sampling, 2, 1),
        lambda sid: derive_seed(seed, int(code), sid),
        watchdog_s=watchdog_s,
        drain_slots=10**6,
        **{"mode": "async", "jitter": Jitter(draft_sd=0.3, forward_sd=0.3, seed=seed)} | more,
    )
    kernel = VirtualKernel(
        table_model(VOCAB, 1),
        table_model(VOCAB, 0),
        [DeviceProfile(0.02 + 0.003 * i) for i in range(DEVICES)],
        [ServerProfile(FORWARD, 9999, rtt_s)] * 2,
        [Request(sid, sid % DEVICES, 0.0, TEXT, 2, max_new) for sid in range(count)],
        planner,
        settings,
    )
    kernel.run()
    return kernel


def streams(kernel: VirtualKernel) -> list[list[int]]:
    return [kernel.recorder.requests[sid].tokens for sid in sorted(kernel.recorder.requests)]


@pytest.mark.parametrize("code", RuleCode)
def test_p12_the_stream_is_the_same_under_any_schedule(
    code: RuleCode, table_model: Any, fixed_plan: Any
) -> None:
    schedules: list[tuple[int, float, Overlap]] = [
        (4, 0.05, Overlap(1)),
        (1, 0.0, Overlap(2)),
        (3, 0.2, Overlap(3, first_length=2)),
        (5, 0.1, Overlap(1, sends_first_ahead=False)),
        (4, 0.1, Overlap(0, sends_first_ahead=False, judges_first=False)),
        (4, 0.05, Overlap(has_barrier=True)),
        (1, 0.2, Overlap(has_barrier=True)),
        (4, 0.05, Overlap(2, draft_budget=0.05)),
        (6, 0.05, Overlap(1, sends_first_ahead=False, draft_budget="verdict")),
        (3, 0.1, Overlap(3, draft_budget=1e-6)),
    ]
    found = [
        streams(
            run(
                table_model,
                fixed_plan.of(draft_length=length, devices=DEVICES),
                code,
                count=DEVICES,
                max_new=24,
                rtt_s=rtt_s,
                overlap=overlap,
                # Times differ from schedule to schedule; the sessions' seeds do not.
                jitter=Jitter(draft_sd=0.3, forward_sd=0.3, seed=length),
            )
        )
        for length, rtt_s, overlap in schedules
    ]
    assert all(len(tokens) == 24 for tokens in found[0])
    assert all(stream == found[0] for stream in found[1:])


@pytest.mark.parametrize("mode", ["async", "psd", "sd"])
def test_verifications_commit_all_that_the_server_did_not_decode_alone(
    mode: str, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=1, max_draft_length=4)
    recorder = run(table_model, plans, RuleCode.FULL, count=6, max_new=40, mode=mode).recorder
    for record in recorder.requests.values():
        alone = [r for r in recorder.rounds if r.sid == record.sid and r.work != "verify"]
        assert record.verified == len(record.tokens) - len(alone) > 0
        assert record.tokens_per_verification == record.verified / record.verifications


@pytest.mark.parametrize("mode", ["async", "psd"])
def test_a_block_that_passes_whole_brings_no_bonus_while_the_device_is_ahead(
    mode: str, fixed_plan: Any, table_model: Any
) -> None:
    model, plan = table_model(VOCAB, 0), fixed_plan.of(draft_length=3)
    settings = KernelSettings(
        1.0, Contract(RuleCode.IDS, GREEDY, 2, 1), lambda sid: sid, mode=mode, jitter=None
    )
    request = Request(0, 0, 0.0, TEXT, 2, 31)
    server = ServerProfile(FORWARD, 9999, 0.05)
    kernel = VirtualKernel(model, model, [DeviceProfile(0.02)], [server], [request], plan, settings)
    (record,) = kernel.run().requests.values()
    assert record.accepted == record.verified == 30
    assert record.tokens_per_verification == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("mode", ["async", "psd"])
def test_requests_end_while_servers_and_draft_lengths_change(
    mode: str, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    kernel = run(table_model, plans, RuleCode.ID_PROB, count=20, max_new=40, mode=mode, window=2)
    records = kernel.recorder.requests.values()
    assert all(len(record.tokens) == 40 for record in records)
    assert sum(record.handovers for record in records) > 20
    assert {record.work for record in kernel.recorder.rounds} == {"prefill", "decode", "verify"}


@pytest.mark.parametrize(("mode", "code"), [("async", RuleCode.IDS), ("psd", RuleCode.ID_PROB)])
def test_greedy_output_is_the_targets_own_through_handovers_and_real_caches(
    mode: str, code: RuleCode, random_draft: Any, random_target: Any, random_plans: Any
) -> None:
    generator = np.random.default_rng(4)
    texts = [tuple(generator.integers(0, 48, 5).tolist()) for _ in range(6)]
    requests = [Request(i, i % 3, 0.3 * i, text, 400, 20) for i, text in enumerate(texts)]
    settings = KernelSettings(
        0.2, Contract(code, GREEDY, 4, 1), lambda sid: sid, mode=mode, window=2, watchdog_s=30.0
    )
    target = TransformerModel(random_target)
    kernel = VirtualKernel(
        TransformerModel(random_draft),
        target,
        [DeviceProfile(0.02, 0.0005)] * 3,
        [ServerProfile(FORWARD, 9999, 0.03)] * 2,
        requests,
        random_plans(num_servers=2, max_draft_length=5, seed=8),
        settings,
    )
    records = list(kernel.run().requests.values())
    check = check_greedy_exact(target, requests, records)
    assert (check.equal, check.unexplained) == (6, ())
    assert sum(record.handovers for record in records) > 3
    assert sum(record.tested for record in records) > 20


@search(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 6),
    budget=st.one_of(st.floats(0.001, 0.2), st.just("verdict")),
    window=st.integers(0, 3),
    rtt_s=st.sampled_from([0.0, 0.05, 0.3]),
    sends_first_ahead=st.booleans(),
    code=st.sampled_from([RuleCode.IDS, RuleCode.ID_PROB, RuleCode.GUMBEL]),
)
def test_a_budget_never_stalls_a_run_and_never_changes_its_tokens(
    length: int, budget: Any, window: int, rtt_s: float, sends_first_ahead: bool, code: RuleCode,
    table_model: Any, fixed_plan: Any,
) -> None:  # fmt: skip
    whole = Overlap(window, sends_first_ahead=sends_first_ahead)
    plan = fixed_plan.of(draft_length=length, devices=DEVICES)
    cut, uncut, endless = (
        run(table_model, plan, code, count=DEVICES, max_new=12, rtt_s=rtt_s, overlap=overlap)
        for overlap in (
            replace(whole, draft_budget=budget),
            whole,
            replace(whole, draft_budget=math.inf),
        )
    )
    assert streams(cut) == streams(uncut)
    assert endless.recorder.rounds == uncut.recorder.rounds, "an endless budget changes no time"


def test_records_show_which_blocks_were_cut(table_model: Any, fixed_plan: Any) -> None:
    # Steps of 20 ms and, on other devices, of 23 or more: the third token is past the budget, or
    # the second.
    plan = fixed_plan.of(draft_length=6, devices=DEVICES)
    overlap = Overlap(3, sends_first_ahead=False, draft_budget=0.045)
    kernel = run(
        table_model, plan, RuleCode.FULL, count=2, max_new=40, overlap=overlap, jitter=None
    )
    for record in kernel.recorder.requests.values():
        rounds = [r for r in kernel.recorder.rounds if r.sid == record.sid and r.work == "verify"]
        accepted = [r for r in rounds if r.is_cut and r.accepted == r.draft_length]
        assert {r.draft_length for r in accepted} == {3 - record.device}
        assert record.cut_blocks >= sum(r.is_cut for r in rounds) > 5


def test_a_budget_below_a_draft_step_gives_blocks_of_one_token(
    table_model: Any, fixed_plan: Any
) -> None:
    cut, single = (
        run(
            table_model,
            fixed_plan.of(draft_length=length, devices=DEVICES),
            RuleCode.FULL,
            count=DEVICES,
            max_new=20,
            window=50,
            draft_budget=budget,
        ).recorder.requests.values()
        for length, budget in ((5, 1e-3), (1, None))
    )
    for mine, theirs in zip(cut, single, strict=True):
        assert (mine.end_s, mine.uplink_bytes) == (theirs.end_s, theirs.uplink_bytes)
        assert mine.cut_blocks > theirs.cut_blocks == 0


def law_of(
    code: RuleCode, table_model: Any, planner: Any, count: int, seed: int, **more: Any
) -> float:
    kernel = run(
        table_model, planner, code, count=count, max_new=TOKENS + 2, seed=seed, window=2, **more
    )
    answers: Sequence[Sequence[int]] = [tokens[:TOKENS] for tokens in streams(kernel)]
    return p_value(answers, target_law(table_model))


@pytest.mark.parametrize(("mode", "code", "seed"), [
    ("async", RuleCode.ID_PROB, 21), ("async", RuleCode.TOPK, 22), ("psd", RuleCode.FULL, 23),
    ("async", RuleCode.GUMBEL, 26),
])  # fmt: skip
def test_three_tokens_have_the_targets_joint_law(
    mode: str, code: RuleCode, seed: int, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    assert law_of(code, table_model, plans, 800, seed, mode=mode) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", "psd"])
@pytest.mark.parametrize("code", SAMPLED)
def test_three_tokens_have_the_targets_joint_law_in_many_runs(
    mode: str, code: RuleCode, table_model: Any, random_plans: Any
) -> None:
    # Schedules that shared their seeds would be one sample seen twice.
    seed = derive_seed(mode, int(code))
    plans = random_plans(num_servers=2, max_draft_length=4, seed=int(code))
    assert law_of(code, table_model, plans, 25_000, seed, mode=mode) > 1e-3


def test_p4_rows_behind_a_rejection_are_void(
    monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    # Mutant: tokens are judged by the row behind the block, which hangs on what is voided.
    verify = Contract.verify

    def late(self: Contract, rows: Any, *rest: Any, **more: Any) -> Any:
        return verify(self, [rows[-1]] * len(rows), *rest, **more)

    monkeypatch.setattr(Contract, "verify", late)
    plan = fixed_plan.of(draft_length=4, devices=DEVICES)
    assert law_of(RuleCode.FULL, table_model, plan, 800, 24) < 1e-6


@pytest.mark.parametrize("name", ["ratio_inverted", "argmax_draft_tested_soft"])
def test_p13_the_same_tables_show_a_defect_of_the_rules(
    name: str, monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    owner, attribute, replacement, code = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, replacement)
    plan = fixed_plan.of(draft_length=4, devices=DEVICES)
    assert law_of(code, table_model, plan, 800, 25) < 1e-6


FORMULA_CASES = [
    # alpha, draft length, draft step, forward, round trip
    (0.7, 4, 0.025, 0.07, 0.05), (0.9, 6, 0.02, 0.145, 0.05), (0.8, 3, 0.02, 0.07, 0.15),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "code"), [
    # The formula of `async` reads a correction at the server, that of `psd` after a round trip;
    # neither sends a first token ahead of a whole draft before the barrier is there.
    ("async", RuleCode.TOPK), ("psd", RuleCode.ID_PROB),
])  # fmt: skip
@pytest.mark.parametrize("case", FORMULA_CASES)
def test_the_formulas_of_the_modes_hold_for_the_machines(
    mode: str, code: RuleCode, case: tuple[float, int, float, float, float], fixed_plan: Any
) -> None:
    alpha, length, draft_s, forward_s, rtt_s = case
    settings = KernelSettings(
        100.0,
        Contract(code, Sampling(), 2, 1),
        lambda sid: derive_seed("formula", sid),
        mode=mode,
        overlap=Overlap(sends_first_ahead=False) if mode == "async" else None,
        jitter=Jitter(TIME_SPREAD, TIME_SPREAD, 0.0),
    )
    kernel = VirtualKernel(
        *bernoulli_pair(alpha),
        [DeviceProfile(draft_s)],
        [ServerProfile(ForwardTime(forward_s, 0, 0, 0), 10**6, rtt_s)],
        [Request(sid, 0, 0.0, (0, 1), 2, 200) for sid in range(6)],
        fixed_plan.of(draft_length=length),
        settings,
    )
    records = kernel.run().requests.values()
    # Few tokens realise another acceptance than they were given.
    share = sum(r.accepted for r in records) / sum(r.tested for r in records)
    zero, gamma = torch.zeros(()), torch.tensor(float(length))
    parts = RoundParts(
        draft_s=gamma * draft_s,
        uplink_s=zero,
        wait_s=zero,
        verify_s=zero + forward_s,
        downlink_s=zero,
        rtt_s=zero + rtt_s,
        alpha=zero + share,
        gamma=gamma,
    )
    tokens = MODES[mode].expected_tokens(parts.alpha, gamma)
    formula_s = float(MODES[mode].round_time_s(parts) / tokens)
    measured_s = float(np.mean([record.tpot_s for record in records]))
    print(f"{mode} {case}: measured over formula {measured_s / formula_s:.3f}")
    assert measured_s == pytest.approx(formula_s, rel=0.06)


def test_the_watchdog_stops_a_run_in_which_nothing_is_committed(
    monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    # Mutant: the server forgets to read its correction, so that nothing can be judged behind it.
    monkeypatch.setattr(ParallelSession, "_next_stage", lambda self: Stage.DEVICE)
    plan = fixed_plan.of(draft_length=3, devices=DEVICES)
    with pytest.raises(StalledRunError, match="nothing was committed"):
        run(table_model, plan, RuleCode.FULL, count=1, max_new=9, watchdog_s=5.0)


def test_no_forward_reads_a_single_token_that_is_no_correction(
    table_model: Any, fixed_plan: Any
) -> None:
    # P1 over whole runs: one-token forwards are corrections and the first token of an answer.
    target = table_model(VOCAB, 0)
    settings = KernelSettings(
        1.0, Contract(RuleCode.FULL, Sampling(), 2, 1), lambda sid: sid, mode="async", window=2
    )
    kernel = VirtualKernel(
        table_model(VOCAB, 1),
        target,
        [DeviceProfile(0.02)],
        [ServerProfile(FORWARD, 9999, 0.05)],
        [Request(0, 0, 0.0, TEXT, 2, 100)],
        fixed_plan.of(draft_length=3),
        settings,
    )
    recorder = kernel.run()
    rejections = sum(r.work == "verify" and r.accepted < r.draft_length for r in recorder.rounds)
    assert rejections > 10
    assert target.fed.count(1) <= rejections + 1
