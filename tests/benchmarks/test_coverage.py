"""Intervals of 50 worlds hold the truth as often as they say, and a wrong truth shows."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.coverage import Case, cases, log_normal_iqm, measure


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.figure}, {case.law}")
def test_intervals_of_fifty_worlds_cover_within_two_points(case: Case) -> None:
    assert measure(case, 50, tables=800).covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("case", [cases()[0], cases()[2]], ids=lambda case: case.figure)
def test_a_wrong_truth_is_not_covered(case: Case) -> None:
    assert measure(dataclasses.replace(case, truth=case.truth + 0.5), 50, tables=60).covered < 0.3


def test_the_true_interquartile_mean_of_a_log_normal_law() -> None:
    # exp(s^2 / 2) (Phi(z - s) - Phi(-z - s)) / 0.5 with z = 0.67449, s = 0.6
    assert log_normal_iqm() == pytest.approx(1.19722 * (0.52969 - 0.10129) / 0.5, rel=1e-3)
