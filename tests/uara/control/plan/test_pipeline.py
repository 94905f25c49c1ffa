"""The two-stage recursion against a double loop, and its period."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.control.plan.model_cost import StageTimes
from uara.control.plan.pipeline import Array, Schedule, run_in_series, run_pipeline, steady_period_s


def stages(rng: np.random.Generator, shape: tuple[int, ...]) -> StageTimes:
    first, second, growth = rng.exponential(1.0, (3, *shape))
    return StageTimes(3 * first, second, 0.1 * growth)


def constant(times: Array) -> StageTimes:
    return StageTimes(times, times, np.zeros_like(times))


def played(schedule: Schedule) -> list[float]:
    """Play one schedule turn by turn, as the definition reads."""
    rounds = schedule.rounds.astype(int)
    drafter = verifier = 0.0
    verdict = schedule.release_s.tolist()
    for number in range(1, int(rounds.max()) + 1):
        for m in range(len(rounds)):
            if number <= rounds[m]:
                drafter = max(drafter, verdict[m]) + float(schedule.draft.at(number)[m])
                verifier = max(verifier, drafter) + float(schedule.verify.at(number)[m])
                verdict[m] = verifier
    return verdict


@given(st.integers(0, 10**6))
def test_the_pipeline_follows_its_recursion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, int(rng.integers(1, 6)))
    schedule = Schedule(
        stages(rng, shape),
        stages(rng, shape),
        rng.integers(1, 7, shape).astype(float),
        rng.exponential(2.0, shape),
        np.zeros(shape),
    )
    ends = run_pipeline(schedule)
    for d in range(3):
        alone = Schedule(
            *(StageTimes(s.first_s[d], s.second_s[d], s.growth_s[d])
              for s in (schedule.draft, schedule.verify)),
            schedule.rounds[d], schedule.release_s[d], schedule.first_round[d],
        )  # fmt: skip
        assert ends[d] == pytest.approx(played(alone), rel=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_constant_stages_settle_into_the_steady_period(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draft_s, verify_s = rng.exponential(1.0, (2, int(rng.integers(1, 7))))
    ends = []
    for rounds in (200.0, 320.0):
        every = np.full_like(draft_s, rounds)
        idle = np.zeros_like(draft_s)
        schedule = Schedule(constant(draft_s), constant(verify_s), every, idle, idle)
        ends.append(run_pipeline(schedule).max())
    period_s = float(steady_period_s(draft_s, verify_s))
    assert (ends[1] - ends[0]) / 120 == pytest.approx(period_s, rel=1e-12)


def test_places_without_a_batch_change_nothing() -> None:
    rng = np.random.default_rng(1)
    draft, verify = stages(rng, (4,)), stages(rng, (4,))
    rounds, zero = np.array([5.0, 3.0, 0.0, 0.0]), np.zeros(4)
    ends = run_pipeline(Schedule(draft, verify, rounds, zero, zero))
    assert np.isnan(ends[2:]).all()
    short = [StageTimes(s.first_s[:2], s.second_s[:2], s.growth_s[:2]) for s in (draft, verify)]
    assert ends[:2] == pytest.approx(
        run_pipeline(Schedule(*short, rounds[:2], zero[:2], zero[:2])), rel=1e-14
    )


def test_one_batch_never_overlaps_with_itself() -> None:
    rng = np.random.default_rng(2)
    one = Schedule(
        stages(rng, (1,)), stages(rng, (1,)), np.full(1, 9.0), np.full(1, 0.5), np.zeros(1)
    )
    assert run_pipeline(one) == pytest.approx(run_in_series(one), rel=1e-14)


def test_a_pipeline_saves_at_most_half_and_never_loses() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(1, 6)),)
        schedule = Schedule(
            stages(rng, shape), stages(rng, shape), np.full(shape, 12.0), np.zeros(shape),
            np.zeros(shape),
        )  # fmt: skip
        overlapped, series = run_pipeline(schedule).max(), run_in_series(schedule).max()
        assert series / 2 <= overlapped <= series * (1 + 1e-12)


def test_series_wait_for_late_prompts() -> None:
    unit = constant(np.ones(2))
    late = Schedule(unit, unit, np.full(2, 2.0), np.array([0.0, 10.0]), np.zeros(2))
    assert run_in_series(late).tolist() == [4.0, 14.0]


def test_a_wave_begins_when_the_one_before_is_done() -> None:
    unit = constant(np.ones(3))
    rounds = np.full(3, 2.0)
    together = Schedule(unit, unit, rounds, np.zeros(3), np.zeros(3))
    waves = Schedule(unit, unit, rounds, np.zeros(3), np.array([0.0, 0.0, 2.0]))
    assert run_pipeline(together).max() == 7
    # Two batches: five units; then the third alone, two rounds of two stages.
    assert run_pipeline(waves).tolist() == [4.0, 5.0, 9.0]
