"""Keyed draws: uniform, independent of order, and never used twice."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from uara.decoding.randomness import Draws, Purpose, derive_seed


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
