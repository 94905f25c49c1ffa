"""Branches behind guessed corrections: the same stream, fewer steps, and nothing decided twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.uara.decoding.test_law import DEVICES, TOKENS, VOCAB, p_value, target_law
from tests.uara.decoding.test_parallel_kernel import FORWARD, run, streams
from tests.uara.decoding.test_parallel_machines import (
    PAIR,
    Device,
    accept,
    part,
    ready_server,
    reject,
)
from uara.decoding import device as dev
from uara.decoding.branches import Branch, BranchToken, Stem
from uara.decoding.drafter import Drafter
from uara.decoding.evolve import evolve
from uara.decoding.exactness import check_coupled_exact, check_greedy_exact
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import TransformerModel
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import Draft, RuleCode
from uara.decoding.randomness import Draws, derive_seed
from uara.decoding.row import Pairs
from uara.decoding.rules import GREEDY, Outcome, Sampling, truncate, warp
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.verifier import Contract

SCHEDULES: list[tuple[int, float, Overlap]] = [
    (4, 0.05, Overlap(1, guesses=2)),
    (3, 0.0, Overlap(2, guesses=1, branch_length=2, sends_first_ahead=False)),
    (1, 0.2, Overlap(6, guesses=3, branch_length=6)),
]


@pytest.mark.parametrize("code", RuleCode)
def test_the_stream_is_that_without_branches(
    code: RuleCode, table_model: Any, fixed_plan: Any
) -> None:
    def play(length: int, rtt_s: float, overlap: Overlap) -> Any:
        plan = fixed_plan.of(draft_length=length, devices=DEVICES)
        return run(table_model, plan, code, count=4, max_new=20, rtt_s=rtt_s, overlap=overlap)

    plain = streams(play(4, 0.05, Overlap(1)))
    for schedule in SCHEDULES:
        kernel = play(*schedule)
        assert streams(kernel) == plain
        records = kernel.recorder.requests.values()
        assert sum(record.branch_tokens_taken for record in records) > 0
        assert all(0 < r.guessed_corrections <= r.corrections for r in records if r.corrections > 9)


def test_every_branch_token_is_accounted_for(table_model: Any, fixed_plan: Any) -> None:
    plan = fixed_plan.of(draft_length=3, devices=DEVICES)
    kernel = run(table_model, plan, RuleCode.FULL, count=4, max_new=40, overlap=SCHEDULES[0][2])
    for record in kernel.recorder.requests.values():
        ends = ("taken", "passed", "missed", "voided")
        settled = sum(getattr(record, f"branch_tokens_{end}") for end in ends)
        left = sum(kernel.recorder.branches_of(record.sid).values())
        assert settled + left == record.branch_tokens > 100


def law_with_branches(code: RuleCode, table_model: Any, plans: Any, count: int, seed: int) -> float:
    overlap = Overlap(2, guesses=2, branch_length=2)
    kernel = run(
        table_model, plans, code, count=count, max_new=TOKENS + 2, seed=seed, overlap=overlap
    )
    return p_value([tokens[:TOKENS] for tokens in streams(kernel)], target_law(table_model))


def test_three_tokens_have_the_targets_joint_law(table_model: Any, random_plans: Any) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    assert law_with_branches(RuleCode.ID_PROB, table_model, plans, 600, 31) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("code", [RuleCode.ID_PROB, RuleCode.FULL])
def test_three_tokens_have_the_targets_joint_law_in_many_runs(
    code: RuleCode, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4, seed=3)
    assert law_with_branches(code, table_model, plans, 10_000, 40 + int(code)) > 1e-3


def test_p13_branch_tokens_that_are_not_drawn_from_their_law_show_in_the_same_tables(
    monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    # Mutant: branches take the likeliest token, and report the law as if it had been drawn.
    draw = Drafter._grow

    def likeliest(self: Drafter, stem: Stem, *rest: Any) -> BranchToken:
        drawn = draw(self, stem, *rest)
        law = self._branches[stem.position, stem.correction].laws[stem.end]
        return evolve(drawn, token=int(np.argmax(law)))

    monkeypatch.setattr(Drafter, "_grow", likeliest)
    plan = fixed_plan.of(draft_length=3, devices=DEVICES)
    assert law_with_branches(RuleCode.FULL, table_model, plan, 500, 32) < 1e-6


def test_tokens_of_a_branch_come_from_the_law_that_is_reported(table_model: Any) -> None:
    # The law and the draw are worked out from the table, not by the drafter.
    model, sampling = table_model(5, 1), Sampling(temperature=0.8)
    contract = Contract(RuleCode.TOPK, sampling, 3, 1)
    drafter = Drafter(model, contract, Draws(9))
    first = drafter.draft((1, 2), 0, (), 2)
    assert first.token not in first.guesses
    guess = first.guesses[0]
    stems = (Branch(2, guess).stem,)
    second = drafter.draft((1, 2, first.token), 0, stems, 2)
    (grown,) = second.grown
    law = truncate(warp(model.logits[2, guess], sampling), 3)
    assert dict(zip(grown.row.ids, grown.row.probabilities, strict=True)) == {
        int(i): float(law[i]) for i in np.flatnonzero(law)
    }
    drafter.correct(2, guess, 0)
    np.testing.assert_array_equal(drafter.law_at(3), law)
    after = Drafter(model, contract, Draws(9)).draft((1, 2, guess), 1)
    assert grown.token == after.token, "the draw is that of the epoch after the rejection"
    assert drafter.draft((1, 2, guess, grown.token), 1).tokens_read == 1
    with pytest.raises(AssertionError, match="already decided"):
        drafter.draft((1, 2, guess), 1)


@pytest.mark.parametrize("code", [RuleCode.IDS, RuleCode.GUMBEL])
def test_output_of_real_caches_is_the_targets_own_through_handovers(
    code: RuleCode, random_draft: Any, random_target: Any, random_plans: Any
) -> None:
    sampling = GREEDY if code is RuleCode.IDS else Sampling(0.8, top_k=20)
    generator = np.random.default_rng(4)
    texts = [tuple(generator.integers(0, 48, 5).tolist()) for _ in range(4)]
    settings = KernelSettings(
        0.4,
        Contract(code, sampling, 4, 1),
        lambda sid: sid,
        mode="async",
        overlap=Overlap(2, guesses=2, branch_length=3),
        watchdog_s=30.0,
    )
    target = TransformerModel(random_target)
    requests = [Request(i, i % 2, 0.3 * i, text, 400, 20) for i, text in enumerate(texts)]
    kernel = VirtualKernel(
        TransformerModel(random_draft),
        target,
        [DeviceProfile(0.02, 0.0005, 0.01)] * 2,
        [ServerProfile(FORWARD, 9999, 0.03)] * 2,
        requests,
        random_plans(num_servers=2, max_draft_length=5, seed=8),
        settings,
    )
    records = list(kernel.run().requests.values())
    if code is RuleCode.IDS:
        check = check_greedy_exact(target, requests, records)
    else:
        check = check_coupled_exact(target, requests, records, sampling, lambda sid: sid)
    assert (check.equal, check.unexplained) == (4, ())
    assert sum(record.handovers for record in records) > 2
    assert sum(record.branch_tokens_taken for record in records) > 0


GROWN = Pairs((5,), (0.5,))


def grow(device: Device, token: int, *grown: BranchToken, guesses: tuple[int, ...] = ()) -> None:
    epoch = next(j for j in reversed(device.jobs) if isinstance(j, dev.DraftToken)).epoch
    device.step(dev.Drafted(token, PAIR, 1, epoch, guesses, grown))


def branching_device(**more: Any) -> Device:
    """Draft two tokens at positions 3 and 4, with 7 guessed in place of the first."""
    device = Device(Overlap(2, guesses=1, sends_first_ahead=False, **more), 2)
    grow(device, 1, guesses=(7,))
    assert device.jobs[-1].branches == (Branch(3, 7).stem,)
    grow(device, 2, BranchToken(3, 7, 5, GROWN, (6,)), guesses=(0,))
    return device


def test_p3_tokens_of_a_branch_are_sent_and_acknowledged() -> None:
    device = branching_device()
    device.receive(reject(3, 0))
    assert device.state.answer.tokens == (6, 7)
    assert device.frames[1:] == [(1, 4, (5,), False)]
    assert device.state.flying == (5,)
    device.receive(accept(4, 1, epoch=1))
    assert device.state.answer.tokens == (6, 7, 5)
    assert device.state.flying == ()


def test_a_correction_that_was_not_guessed_begins_anew() -> None:
    device = branching_device()
    device.receive(reject(3, 0, token=4))
    assert device.state.answer.tokens == (6, 4)
    assert (device.state.tail, device.state.branches) == ((), ())
    assert dev.Corrected(3, 4, 0, is_guessed=False, tokens=0) in device.jobs


def test_p9_of_a_dead_step_only_the_token_of_the_branch_taken_up_counts() -> None:
    device = branching_device()
    device.receive(reject(3, 0))  # while a step draws the branch's second token
    grow(device, 3, BranchToken(3, 7, 2, GROWN), BranchToken(4, 0, 1, GROWN), guesses=(4,))
    assert device.state.context == (4, 5, 6, 7, 5, 2)
    assert not any(branch.correction in (0, 4) for branch in device.state.branches)


def test_p10_branches_of_a_chain_are_not_used_for_the_next_one() -> None:
    device = branching_device()
    device.receive(reject(3, 1, token=0))  # at position 4, where 0 was guessed
    assert device.state.context == (4, 5, 6, 1, 0)
    # The step under way ends; its main token and the branch at position 3 are void.
    grow(device, 3, BranchToken(4, 0, 2, GROWN, (7,)), BranchToken(3, 7, 5, GROWN))
    assert device.state.context == (4, 5, 6, 1, 0, 2)
    grow(device, 3)
    device.receive(reject(5, 0, token=7, epoch=1))
    # Position 5 has a branch of this epoch, drafted behind the token of the branch.
    assert device.state.context[:6] == (4, 5, 6, 1, 0, 7)
    device.receive(reject(3, 0, token=7, epoch=0))  # once more, from the dead chain
    assert device.state.dropped == 1


def test_p10_a_second_rejection_that_comes_at_once_finds_no_branch_of_the_first_chain() -> None:
    device = branching_device()
    device.receive(reject(3, 0))
    device.receive(reject(4, 0, token=0, epoch=1))
    # 0 was guessed at position 4 of the first chain only.
    assert device.state.context == (4, 5, 6, 7, 0)
    assert dev.Corrected(4, 0, 1, is_guessed=False, tokens=0) in device.jobs


def test_p2_a_correction_and_its_branch_go_up_in_one_frame() -> None:
    device = branching_device()
    device.receive(evolve(accept(3, 0), top=PAIR))
    device.step(dev.Resolved(7, 0))
    frame = device.sent[-1]
    assert isinstance(frame, Draft)
    assert (frame.base, frame.correction, frame.tokens, frame.continues) == (4, 7, (5,), False)
    assert [effect for effect in device.sent if isinstance(effect, Draft)][-2].base == 3


def test_p2_a_correction_and_its_branch_are_read_in_one_forward() -> None:
    server = ready_server()
    server.verdicts = [Outcome(0, None, PAIR, PAIR)]
    server.receive(part(3, 3))
    server.receive(evolve(part(4, 5, 6, epoch=1), correction=2, continues=False))
    assert server.forwards == [(5, 6)]
    assert server.session.unread == 1, "the correction is read with the tokens behind it"


def test_without_a_draft_length_no_branch_is_taken_up() -> None:
    device = branching_device()
    device.step(dev.Replan(0))
    device.receive(reject(3, 0))
    grow(device, 3, BranchToken(3, 7, 2, GROWN))
    assert device.state.is_handed_over
    assert device.state.tail == ()


def test_branches_need_a_device_that_drafts_on() -> None:
    for options in ({"window": 0}, {"has_barrier": True}):
        with pytest.raises(AssertionError, match="drafts on"):
            Overlap(**options, guesses=1)


def test_a_branch_costs_its_share_of_a_draft_step(table_model: Any, fixed_plan: Any) -> None:
    def spent_s(share: float) -> float:
        settings = KernelSettings(
            1.0,
            Contract(RuleCode.FULL, Sampling(), 2, 1),
            lambda sid: derive_seed(2, sid),
            mode="async",
            overlap=Overlap(guesses=2),
        )
        kernel = VirtualKernel(
            table_model(VOCAB, 1),
            table_model(VOCAB, 0),
            [DeviceProfile(0.02, 0.0, share)],
            [ServerProfile(FORWARD, 9999, 0.05)],
            [Request(0, 0, 0.0, (0, 1), 2, 30)],
            fixed_plan.of(draft_length=3),
            settings,
        )
        record = kernel.run().requests[0]
        steps = kernel.devices[0].draft_s
        return steps if not share else (steps - free_s) / (record.branch_tokens * 0.02)

    free_s = spent_s(0.0)
    # The same stream is drafted, at other times.
    assert spent_s(1e-6) == pytest.approx(1e-6, rel=1e-3)
