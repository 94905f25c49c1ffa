"""Figures beside the mean: interquartile mean, probability of improvement, performance profile.

Shape legend: N episodes, W worlds, S training seeds, R resamples, X thresholds.

Agarwal et al., arXiv 2108.13264, name these figures for runs x tasks; here a world takes the place
of a task and worlds are drawn at random too. Intervals are bootstrap intervals with a generator of
their own, so that the same seed gives the same interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.statistics import Interval, crossed_cells, variance_of_mean

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (..., C) -> (...)

TRIM = 0.25  # share cut off at each end: what is left is the interquartile mean


@dataclass(frozen=True)
class Profile:
    """Share of cells that stay within each threshold, with a pointwise interval.

    Attributes:
        threshold: (X,) in the unit of the metric.
        share: (X,) of the worlds (and seeds) whose mean is at most the threshold.
        low: (X,) lower end of the interval.
        high: (X,) upper end of the interval.
    """

    threshold: NDArray[np.float64]
    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def interquartile_mean(
    values: ArrayLike,
    world: ArrayLike,
    seed: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng: int = 0,
) -> Interval:
    """Compute the mean of the middle half of the worlds (and seeds), with a bootstrap interval.

    Args:
        values: (N,) one per episode.
        world: (N,) labels.
        seed: (N,) labels of training seeds; none where nothing was trained.
        level: confidence.
        resamples: R.
        rng: seed of the resampling.
    """
    cells = crossed_cells(values, world, seed)
    return _interval(cells, _trimmed, level, resamples, rng)


def probability_of_improvement(
    treatment: ArrayLike,
    control: ArrayLike,
    world: ArrayLike,
    seed: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng: int = 0,
) -> Interval:
    """Compute how often the treatment is lower than the control on an episode both have played.

    A tie counts one half, so a controller against itself gives 0.5.

    Args:
        treatment: (N,) one per episode, lower is better.
        control: (N,) the same episodes in the same order.
        world: (N,) labels.
        seed: (N,) labels of training seeds; none where nothing was trained.
        level: confidence.
        resamples: R.
        rng: seed of the resampling.
    """
    ours, theirs = np.asarray(treatment, np.float64), np.asarray(control, np.float64)
    wins = (ours < theirs) + 0.5 * (ours == theirs)
    cells = crossed_cells(wins, world, seed)
    found = _interval(cells, lambda flat: flat.mean(-1), level, resamples, rng)
    return Interval(found.mean, max(found.low, 0.0), min(found.high, 1.0))


def performance_profile(
    values: ArrayLike,
    threshold: ArrayLike,
    world: ArrayLike,
    seed: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    rng: int = 0,
) -> Profile:
    """Compute which share of worlds (and seeds) has a mean within each threshold.

    Args:
        values: (N,) one per episode, lower is better.
        threshold: (X,) in the unit of the values.
        world: (N,) labels.
        seed: (N,) labels of training seeds; none where nothing was trained.
        level: confidence, pointwise.
        resamples: R.
        rng: seed of the resampling.
    """
    limits = np.asarray(threshold, np.float64)
    cells = crossed_cells(values, world, seed)
    within = (cells[..., None] <= limits).astype(np.float64)  # (W, S, X)
    draws = _draw_cells(within, resamples, rng).mean(1)  # (R, X)
    tail = 0.5 - level / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Profile(limits, within.mean((0, 1)), low, high)


def _trimmed(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(stats.trim_mean(flat, TRIM, axis=-1))


def _interval(
    cells: NDArray[np.float64], statistic: Statistic, level: float, resamples: int, rng: int
) -> Interval:
    """Bootstrap a statistic of the table (W, S).

    Over worlds alone the interval is BCa; over worlds and seeds it is a t interval of the bootstrap
    error with the degrees of freedom of the crossed mean.
    """
    if cells.size == 0:
        return Interval(np.nan, -np.inf, np.inf)
    centre = float(statistic(cells.reshape(-1)))
    if len(cells) < 2:
        return Interval(centre, -np.inf, np.inf)
    if np.ptp(cells) == 0:
        return Interval(centre, centre, centre)
    if cells.shape[1] == 1:
        found = stats.bootstrap(
            (cells[:, 0],),
            lambda sample, axis: statistic(np.moveaxis(sample, axis, -1)),
            confidence_level=level,
            n_resamples=resamples,
            vectorized=True,
            rng=np.random.default_rng(rng),
        ).confidence_interval
        return Interval(centre, float(found.low), float(found.high))
    draws = statistic(_draw_cells(cells[..., None], resamples, rng)[..., 0])
    # Few seeds: a resample of S seeds has (S - 1) / S of their variance, and t tails.
    few = min(cells.shape)
    error = float(draws.std(ddof=1)) * np.sqrt(few / (few - 1))
    half = float(stats.t.ppf(0.5 + level / 2, variance_of_mean(cells)[1])) * error
    return Interval(centre, centre - half, centre + half)


def _draw_cells(table: NDArray[np.float64], resamples: int, rng: int) -> NDArray[np.float64]:
    """Draw worlds and seeds with replacement, each for itself (W, S, X) -> (R, W * S, X).

    Owen, 'The pigeonhole bootstrap' (Annals of Applied Statistics 1, 2007): resampling both factors
    never understates the variance of a crossed mean.
    """
    generator = np.random.default_rng(rng)
    worlds, seeds, width = table.shape
    rows = generator.integers(worlds, size=(resamples, worlds, 1))
    columns = generator.integers(seeds, size=(resamples, 1, seeds))
    return table[rows, columns].reshape(resamples, worlds * seeds, width)
