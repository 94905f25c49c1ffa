"""Keyed draws: uniform, independent of order, and never used twice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from uara.decoding.randomness import Draws, Ledger, Purpose, derive_seed


def test_uniforms_of_different_keys_look_independent_and_uniform() -> None:
    draws = Draws(seed=3)
    purposes = (Purpose.ACCEPT, Purpose.DRAFT)
    grid = np.array([[draws.uniform(p, i) for i in range(1500)] for p in purposes])
    assert stats.kstest(grid.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(grid)[0, 1]) < 0.1
    assert abs(np.corrcoef(grid[0, 1:], grid[0, :-1])[0, 1]) < 0.1


def test_every_part_of_the_key_matters() -> None:
    base = Draws(seed=1).uniform(Purpose.ACCEPT, 5, 0)
    others = [
        Draws(seed=2).uniform(Purpose.ACCEPT, 5, 0),
        Draws(seed=1).uniform(Purpose.THIN, 5, 0),
        Draws(seed=1).uniform(Purpose.ACCEPT, 6, 0),
        Draws(seed=1).uniform(Purpose.ACCEPT, 5, 1),
        Draws(seed=1).in_epoch(1).uniform(Purpose.ACCEPT, 5, 0),
    ]
    assert len({base, *others}) == 6
    assert base == Draws(seed=1).uniform(Purpose.ACCEPT, 5, 0)


def test_a_key_cannot_decide_twice() -> None:
    draws = Draws(seed=1)
    draws.flip(Purpose.ACCEPT, 7, 0.5)
    draws.in_epoch(1).flip(Purpose.ACCEPT, 7, 0.5)
    with pytest.raises(AssertionError, match="has already decided"):
        draws.in_epoch(0).flip(Purpose.ACCEPT, 7, 0.5)


def test_a_ledger_that_is_not_checked_counts_all_the_same() -> None:
    draws = Draws(seed=1, ledger=Ledger(is_checked=False))
    for _ in range(3):
        draws.in_epoch(2).flip(Purpose.ACCEPT, 7, 0.5)
    draws.race(Purpose.TARGET, 7, np.ones(3))
    assert (draws.ledger.count, draws.ledger.used) == (4, set())


def test_a_race_cannot_decide_twice_but_its_noise_may_serve_both_ends() -> None:
    draws, weights = Draws(seed=1), np.array([1.0, 2.0, 3.0])
    drafted = draws.race(Purpose.DRAFT, 7, weights)
    assert draws.race(Purpose.TARGET, 7, weights) == drafted
    assert draws.in_epoch(4).race(Purpose.DRAFT, 7, weights) == drafted
    with pytest.raises(AssertionError, match="has already decided"):
        draws.race(Purpose.TARGET, 7, weights)


def test_noise_is_exponential_and_differs_between_positions_and_seeds() -> None:
    noise = np.array([Draws(seed).noise(p, 300) for seed in (1, 2) for p in (4, 5)])
    assert stats.kstest(noise.ravel(), "expon").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.25
    assert np.array_equal(Draws(1).noise(4, 100), noise[0, :100])


def test_races_follow_the_weights_and_never_take_a_zero() -> None:
    weights = np.array([0.0, 3.0, 0.0, 1.0, 0.0])
    draws = Draws(seed=9)
    counts = np.bincount([draws.race(Purpose.DRAFT, i, weights) for i in range(2000)], minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert stats.binomtest(int(counts[1]), 2000, 0.75).pvalue > 1e-3


def test_picks_follow_the_weights_and_never_take_a_zero() -> None:
    weights = np.array([0.0, 3.0, 0.0, 1.0, 0.0])
    draws = Draws(seed=9)
    counts = np.bincount([draws.pick(Purpose.DRAFT, i, weights) for i in range(2000)], minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert stats.binomtest(int(counts[1]), 2000, 0.75).pvalue > 1e-3


def test_flips_of_certain_outcomes_are_certain() -> None:
    draws = Draws(seed=4)
    assert all(draws.flip(Purpose.ACCEPT, i, 1.0) for i in range(50))
    assert not any(draws.flip(Purpose.THIN, i, 0.0) for i in range(50))


def test_seeds_depend_on_every_part_and_their_order() -> None:
    seeds = {derive_seed(1, 2), derive_seed(2, 1), derive_seed(12), derive_seed("1", 2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**64 for seed in seeds)
