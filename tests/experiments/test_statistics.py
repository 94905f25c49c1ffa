"""Intervals against hand data, scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import Interval, cluster_means, mean_interval, paired_difference


def bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def test_clusters_are_averaged_in_the_order_of_their_labels() -> None:
    assert cluster_means([1, 3, 10, 5], [7, 7, 2, 7]).tolist() == [10, 3]


def test_interval_is_scipys_t_interval_of_independent_values() -> None:
    values = [3.1, 2.4, 5.0, 4.2, 3.3]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert bounds(mean_interval(values, range(5), level=0.9)) == pytest.approx((3.6, low, high))


def test_interval_by_hand() -> None:
    # cluster means 1, 2, 3: deviation 1, t(2) = 4.3027
    interval = mean_interval([0, 2, 2, 2, 3], [0, 0, 1, 1, 2])
    assert bounds(interval) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), 1e-4)


def test_more_episodes_of_the_same_worlds_do_not_narrow_the_interval() -> None:
    values, world = np.random.default_rng(0).normal(size=12), np.arange(12) % 4
    once = mean_interval(values, world)
    assert bounds(mean_interval(np.tile(values, 9), np.tile(world, 9))) == pytest.approx(
        bounds(once)
    )
    # as independent values they would seem to
    seeming = mean_interval(np.tile(values, 9), range(108))
    assert seeming.high - seeming.low < 0.6 * (once.high - once.low)


def test_seeds_that_learned_the_same_do_not_narrow_the_interval() -> None:
    values, world = np.random.default_rng(0).normal(size=12), np.arange(12) % 6
    seeds = np.repeat(np.arange(5), 12)
    pooled = mean_interval(np.tile(values, 5), np.tile(world, 5), seeds)
    assert bounds(pooled) == pytest.approx(bounds(mean_interval(values, world)))


def test_worlds_that_are_all_alike_leave_the_interval_of_the_seeds() -> None:
    by_seed = [3.0, 4.0, 8.0]
    values = np.repeat(by_seed, 6)
    interval = mean_interval(values, np.tile(np.arange(6), 3), np.repeat(np.arange(3), 6))
    assert bounds(interval) == pytest.approx(bounds(mean_interval(by_seed, range(3))))


def test_crossed_interval_by_hand() -> None:
    # worlds x seeds [[0, 1], [4, 7]]: mean squares 25 of worlds, 4 of seeds, 1 of the rest;
    # variance (25 + 4 - 1) / 4 = 7 with 28^2 / (25^2 + 4^2 + 1^2) degrees of freedom
    interval = mean_interval([0, 4, 1, 7], [0, 1, 0, 1], [0, 0, 1, 1])
    half = stats.t.ppf(0.975, 784 / 642) * 7**0.5
    assert bounds(interval) == pytest.approx((3, 3 - half, 3 + half))


def test_a_world_that_some_seed_misses_is_left_out() -> None:
    whole = mean_interval([1, 2, 3, 5], [0, 1, 0, 1], [0, 0, 1, 1])
    assert mean_interval([1, 2, 99, 3, 5], [0, 1, 2, 0, 1], [0, 0, 0, 1, 1]) == whole


@pytest.mark.parametrize("values", [[4.0], [4.0, 4.5]])
def test_one_cluster_says_nothing_about_the_spread(values: list[float]) -> None:
    interval = mean_interval(values, [0] * len(values))
    assert (interval.low, interval.high) == (-np.inf, np.inf)
    assert not interval.excludes_zero


def test_the_interval_covers_the_mean_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(11)
    world = np.repeat(np.arange(8), 4)
    hits = 0
    for _ in range(2000):
        values = rng.normal(2.0, 1.0, 8)[world] + rng.normal(0, 0.5, 32)
        interval = mean_interval(values, world)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.93 <= hits / 2000 <= 0.97


@pytest.mark.parametrize(("world_spread", "seed_spread"), [(1.0, 0.0), (1.0, 1.0), (0.2, 1.0)])
def test_crossed_worlds_and_seeds_are_covered_too(world_spread: float, seed_spread: float) -> None:
    rng = np.random.default_rng(12)
    world, seed = np.tile(np.arange(12), 5), np.repeat(np.arange(5), 12)
    hits = 0
    for _ in range(500):
        values = rng.normal(0, world_spread, 12)[world] + rng.normal(0, seed_spread, 5)[seed]
        interval = mean_interval(values + rng.normal(0, 0.5, 60), world, seed)
        hits += interval.low <= 0.0 <= interval.high
    assert hits / 500 >= 0.93
    assert hits / 500 <= 0.99


def test_equal_runs_differ_by_nothing() -> None:
    values = [1.5, 2.5, 9.0]
    assert bounds(paired_difference(values, values, range(3))) == (0, 0, 0)


def test_a_difference_is_treatment_minus_control() -> None:
    interval = paired_difference([1.0, 2.0, 3.1], [3.0, 4.1, 5.0], range(3))
    assert interval.mean == pytest.approx(-2.0)
    assert interval.high < 0
    assert interval.excludes_zero


def test_pairing_takes_out_what_both_met() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 100, 20)
    gain = rng.normal(1, 0.1, 20)
    assert paired_difference(hard + gain, hard, range(20)).excludes_zero
    assert not mean_interval(hard + gain, range(20)).excludes_zero


def test_an_interval_as_json() -> None:
    assert Interval(1.0, 0.5, 1.5).as_json() == {"mean": 1.0, "ci95": [0.5, 1.5]}
