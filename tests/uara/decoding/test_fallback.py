"""Acceptance seen without speculating, and draft lengths that follow from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.fallback_grid import Cell, measure
from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.estimates import RunningAcceptance
from uara.decoding.fallback import Fallback, FallbackConfig
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws, Purpose, derive_seed
from uara.decoding.rules import Sampling, round_up, truncate, warp
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.shadow import Shadow
from uara.decoding.verifier import Contract
from uara.errors import UserError
from uara.serving.hardware import ForwardTime

DRAFT_S, FORWARD_S = 0.0244, 0.072


def contract(code: RuleCode) -> Contract:
    return Contract(code, Sampling(temperature=0.8), 2, 1)


@pytest.mark.parametrize("code", [RuleCode.ID_PROB, RuleCode.TOPK, RuleCode.FULL, RuleCode.IDS])
def test_the_mean_over_the_targets_tokens_is_the_overlap_of_the_laws(
    code: RuleCode, table_model: Any
) -> None:
    draft, vocab = table_model(5, 1), 5
    target = warp(table_model(5, 0).logits[2, 3], Sampling(temperature=0.8))
    law = warp(draft.logits[2, 3], Sampling(temperature=0.8))
    mean = 0.0
    for token in range(vocab):
        shadow = Shadow(draft, contract(code), (1, 2), Draws(0))
        shadow.compare((3,), token, float(target[token]))
        mean += float(target[token]) * shadow.total
    if code is RuleCode.IDS:
        assert mean == pytest.approx(target[np.argmax(law)])
    else:
        law = truncate(law, 2) if code is RuleCode.TOPK else law
        assert mean == pytest.approx(np.minimum(law, target).sum())


def test_rounded_probabilities_cost_acceptance_in_the_estimate_too(table_model: Any) -> None:
    draft, sampling = table_model(5, 1), Sampling(temperature=0.8)
    target = warp(table_model(5, 0).logits[2, 3], sampling)
    law = warp(draft.logits[2, 3], sampling)
    rounded = Contract(RuleCode.ID_PROB, sampling, 2, 1, probability_bits=8)
    mean = 0.0
    for token, probability in enumerate(target):
        shadow = Shadow(draft, rounded, (1, 2), Draws(0))
        shadow.compare((3,), token, float(probability))
        mean += float(probability) * shadow.total
    passed = float((law * np.minimum(1, target / round_up(law, 8))).sum())
    assert mean == pytest.approx(passed)
    assert mean < np.minimum(law, target).sum() - 1e-3


def test_coupled_drafts_are_worth_what_the_shared_noise_lets_pass(table_model: Any) -> None:
    draft, sampling = table_model(5, 1), Sampling(temperature=0.8)
    target = warp(table_model(5, 0).logits[2, 3], sampling)
    law = warp(draft.logits[2, 3], sampling)
    shares = []
    for seed in range(2000):
        token = Draws(seed).race(Purpose.TARGET, 3, target)
        shadow = Shadow(draft, contract(RuleCode.GUMBEL), (1, 2), Draws(seed))
        shadow.compare((3,), token, float(target[token]))
        shares.append(shadow.total)
    # Both races are won by x with 1 / sum_y max(p_y / p_x, q_y / q_x).
    both = [1 / np.maximum(target / target[x], law / law[x]).sum() for x in range(5)]
    assert np.mean(shares) == pytest.approx(sum(both), abs=0.03)


def play(alpha: float, rtt_s: float, planner: Any, *, count: int = 6) -> VirtualKernel:
    settings = KernelSettings(
        0.25,
        contract(RuleCode.ID_PROB),
        lambda sid: derive_seed("fallback", sid),
        mode="async",
        watchdog_s=20.0,
        shadows=True,
    )
    kernel = VirtualKernel(
        *bernoulli_pair(alpha),
        [DeviceProfile(DRAFT_S)],
        [ServerProfile(ForwardTime(FORWARD_S, 0, 0, 0), 10**6, rtt_s)],
        [Request(sid, 0, 0.0, (0, 1), 2, 128) for sid in range(count)],
        planner,
        settings,
    )
    kernel.run()
    return kernel


def mean_tpot_s(kernel: VirtualKernel) -> float:
    return float(np.mean([record.tpot_s for record in kernel.recorder.requests.values()]))


@pytest.mark.parametrize(("alpha", "rtt_s"), [(0.3, 0.005), (0.5, 0.1), (0.6, 0.2)])
def test_where_drafts_do_not_pay_the_server_goes_on_alone(
    alpha: float, rtt_s: float, fixed_plan: Any
) -> None:
    kernel = play(alpha, rtt_s, Fallback(fixed_plan.of(draft_length=4), FallbackConfig()))
    assert FORWARD_S / mean_tpot_s(kernel) > 0.97


def test_where_drafts_pay_it_speculates_after_a_few_tokens(fixed_plan: Any) -> None:
    kernel = play(0.95, 0.02, Fallback(fixed_plan.of(draft_length=1), FallbackConfig()))
    assert FORWARD_S / mean_tpot_s(kernel) > 1.7
    first = [r for r in kernel.recorder.rounds if r.sid == 0][:9]
    assert {record.work for record in first} == {"prefill", "decode"}


def test_an_estimate_from_few_tokens_is_bounded_well_below_its_mean() -> None:
    bounds = []
    for count in (4, 16, 256):
        acceptance = RunningAcceptance()
        acceptance.update(count, 0.8 * count, 0.8 * count)
        bounds.append(acceptance.lower(1.0))
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.62
    assert bounds[-1] == pytest.approx(0.8 - 0.4 / 16, abs=0.002)
    assert RunningAcceptance().lower(2.0) == 0.0


def test_an_estimate_that_forgets_follows_a_turn_and_is_as_sure_as_its_weights() -> None:
    memory, turned, steady = 32.0, RunningAcceptance(32.0), RunningAcceptance()
    passed = np.random.default_rng(0).random(4000) < np.repeat([0.9, 0.4], 2000)
    for count in range(1, 4001):
        for acceptance in (turned, steady):
            acceptance.update(count, float(passed[:count].sum()), float(passed[:count].sum()))
    weights = np.exp(-np.arange(4000)[::-1] / memory)
    mean = (weights * passed).sum() / weights.sum()
    number = weights.sum() ** 2 / (weights**2).sum()
    assert turned.lower(0.0) == pytest.approx(mean)
    assert steady.lower(0.0) == pytest.approx(passed.mean())
    error = np.sqrt((number * mean * (1 - mean) + 0.25) / (number + 1) / number)
    assert turned.lower(2.0) == pytest.approx(mean - 2 * error)


def test_a_mode_without_drafts_has_nothing_to_fall_back_from(fixed_plan: Any) -> None:
    with pytest.raises(UserError, match="allowed: sd, psd, async"):
        Fallback(fixed_plan.of(draft_length=1), FallbackConfig(), "device_only")


def test_round_trips_and_draft_steps_are_followed_as_they_change(fixed_plan: Any) -> None:
    kernel = play(0.9, 0.02, fixed_plan.of(draft_length=3), count=1)
    times = kernel.devices[0].times
    assert times.rtt_s == pytest.approx(0.02)
    assert times.draft_s == pytest.approx(DRAFT_S)
    for _ in range(24):
        times.travel(0.1)
    # What is left of the old path after 24 ways: (7/8)^24.
    assert times.rtt_s == pytest.approx(0.2 - 0.18 * 0.875**24)


@pytest.mark.slow
@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize(
    ("rtt_s", "alpha", "forward_s"),
    [(0.075, 0.75, 0.072), (0.02, 0.5, 0.072), (0.1, 0.5, 0.1456)],
)
def test_near_break_even_the_mean_is_not_below_the_server_alone(
    rtt_s: float, alpha: float, forward_s: float, jumps: bool
) -> None:
    # Times scatter; the round trip jumps in the middle of every request, or stays.
    found = measure(Cell(rtt_s, alpha, forward_s, requests=60, tokens=128, jumps=jumps))
    print(f"{found.cell}: mean {found.mean:.3f}, 5th percentile {found.p5:.3f}")
    assert found.mean >= 0.97
