"""Interquartile mean, probability of improvement and profile against hand data and known laws."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.robust_statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from experiments.statistics import paired_difference


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([0, 1, 2, 3, 4, 5, 6, 900], range(8)).mean == 3.5


def test_interquartile_mean_is_over_worlds_not_over_episodes() -> None:
    # three episodes of world 0 average 2; worlds 2, 4, 6, 8: the middle two are 4 and 6
    assert interquartile_mean([1, 2, 3, 4, 6, 8], [0, 0, 0, 1, 2, 3]).mean == 5


def test_one_wild_world_moves_the_mean_and_not_the_interquartile_mean() -> None:
    values = np.arange(20.0)
    wild = np.where(values == 19, 1e6, values)
    assert interquartile_mean(wild, range(20)) == interquartile_mean(values, range(20))


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_same_generator_seed_gives_the_same_interval(seeds: int) -> None:
    values = np.random.default_rng(3).normal(size=12 * seeds)
    world, seed = np.tile(np.arange(12), seeds), np.repeat(np.arange(seeds), 12)
    np.random.seed(1)
    first = interquartile_mean(values, world, seed)
    np.random.seed(2)
    assert interquartile_mean(values, world, seed) == first
    assert interquartile_mean(values, world, seed, rng=1) != first


def test_a_controller_compared_with_itself_shows_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=30)
    world, seed = np.tile(np.arange(10), 3), np.repeat(np.arange(3), 10)
    apart = paired_difference(values, values, world, seed)
    better = probability_of_improvement(values, values, world, seed)
    assert (apart.mean, apart.low, apart.high) == (0, 0, 0)
    assert (better.mean, better.low, better.high) == (0.5, 0.5, 0.5)


def test_probability_of_improvement_counts_episodes_and_halves_ties() -> None:
    # world 0: lower and tied -> 0.75; world 1: higher and lower -> 0.5
    found = probability_of_improvement([1, 2, 5, 1], [2, 2, 4, 2], [0, 0, 1, 1])
    assert found.mean == 0.625


def test_swapping_the_sides_mirrors_the_probability() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(size=40), rng.normal(0.3, 1, size=40)
    world = np.arange(40) % 10
    there = probability_of_improvement(ours, theirs, world)
    back = probability_of_improvement(theirs, ours, world)
    assert there.mean == pytest.approx(1 - back.mean)
    assert there.low == pytest.approx(1 - back.high, abs=0.03)


def test_profile_is_the_share_of_cells_within_each_threshold() -> None:
    profile = performance_profile([1, 2, 3, 4], [0.5, 2, 3.5, 9], range(4))
    assert profile.share.tolist() == [0, 0.5, 0.75, 1]
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    assert (profile.low[0], profile.high[-1]) == (0, 1)


def test_profile_of_seeds_pools_worlds_and_seeds() -> None:
    profile = performance_profile([1, 2, 3, 4], [2.5], [0, 1, 0, 1], [0, 0, 1, 1])
    assert profile.share.tolist() == [0.5]


def test_one_world_says_nothing_about_the_spread() -> None:
    interval = interquartile_mean([4.0, 5.0], [0, 0])
    assert (interval.low, interval.high) == (-np.inf, np.inf)


def test_worlds_that_are_all_alike_leave_the_spread_of_the_seeds() -> None:
    by_seed = np.random.default_rng(2).normal(size=12)
    values, seed = np.repeat(by_seed, 40), np.repeat(np.arange(12), 40)
    interval = interquartile_mean(values, np.tile(np.arange(40), 12), seed, resamples=4000)
    # resampling twelve seeds alone, 40 equal cells each; t with 11 degrees of freedom
    draws = np.random.default_rng(9).choice(by_seed, (20_000, 12))
    trimmed = np.sort(draws, axis=1)[:, 3:9].mean(1)
    half = 2.201 * trimmed.std() * np.sqrt(12 / 11)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.05)


def test_intervals_of_worlds_and_seeds_cover_the_interquartile_mean() -> None:
    rng = np.random.default_rng(4)
    world, seed = np.tile(np.arange(24), 5), np.repeat(np.arange(5), 24)
    hits = 0
    for _ in range(150):
        values = rng.normal(size=24)[world] + rng.normal(size=5)[seed] + rng.normal(0, 0.5, 120)
        interval = interquartile_mean(values, world, seed, resamples=300)
        hits += interval.low <= 0 <= interval.high
    assert 0.91 <= hits / 150 <= 0.99
