"""The joint law of three tokens, every rule and codec by chi-square; and defects that it must see.

A distribution test that never rejects proves nothing, so the defects run on the same tables.
"""

from __future__ import annotations

import pytest

from benchmarks.exactness_mutants import MUTANTS
from benchmarks.exactness_trials import CASES, Fit, Tables, Trial, fit, sample

TABLES = Tables.draw()
STRONG = (
    "ratio inverted",
    "residual of the target's top 2",
    "draft whole, test truncated",
    "draft truncated, test whole",
    "argmax draft, soft test",
    "low-confidence token dropped",
    "row behind a rejection used",
    "tail draw always kept",
    "onehot: mismatch drawn from the whole row",
    "gumbel: mismatch drawn afresh",
    "gumbel: noise shared by neighbours",
)


def joint_fit(name: str, draws: int) -> Fit:
    trial = Trial(CASES[name], TABLES)
    return fit(sample(trial, draws, seed=5), trial.target_law())


@pytest.mark.parametrize("name", CASES)
def test_three_tokens_have_the_targets_joint_law(name: str) -> None:
    assert joint_fit(name, 1200).p_value > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_three_tokens_have_the_targets_joint_law_in_many_draws(name: str) -> None:
    assert joint_fit(name, 100_000).p_value > 1e-4


@pytest.mark.parametrize("name", STRONG)
def test_the_same_test_sees_a_defect(name: str) -> None:
    assert MUTANTS[name].fit(TABLES, 1200).p_value < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_same_test_sees_every_defect_in_many_draws(name: str) -> None:
    assert MUTANTS[name].fit(TABLES, 100_000).p_value < 1e-4
