"""Intervals of means and of paired differences; worlds and training seeds are crossed factors.

Shape legend: N episodes, W worlds, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Tell whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, object]:
        """Return `{"mean": ..., "ci95": [low, high]}`."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


def cluster_means(values: ArrayLike, cluster: ArrayLike) -> NDArray[np.float64]:
    """Average values within each cluster, in the order of the sorted cluster labels."""
    values = np.asarray(values, dtype=np.float64)
    labels, index = np.unique(np.asarray(cluster), return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index, minlength=len(labels))


def crossed_cells(
    values: ArrayLike, world: ArrayLike, seed: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Average the episodes of each world and training seed, (W, S).

    Worlds that miss an episode under some seed are left out: they would tilt the comparison of
    seeds. Without seeds S is 1.
    """
    values = np.asarray(values, dtype=np.float64)
    worlds = np.asarray(world)
    seeds = np.zeros(len(values)) if seed is None else np.asarray(seed)
    columns = np.unique(seeds)
    shared = [w for w in np.unique(worlds) if len(np.unique(seeds[worlds == w])) == len(columns)]
    if not shared:
        return np.empty((0, len(columns)))
    kept = np.isin(worlds, shared)
    return np.stack(
        [cluster_means(values[kept & (seeds == s)], worlds[kept & (seeds == s)]) for s in columns],
        axis=1,
    )


def mean_interval(
    values: ArrayLike, world: ArrayLike, seed: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Compute the mean over worlds (and training seeds) and its t interval.

    Episodes of one world share its tracks and fading and are not independent: a world counts once.
    Where every seed of training played the same worlds, worlds and seeds are two crossed random
    factors: neither more episodes of a world nor more seeds on it make up for few worlds.

    Args:
        values: (N,) one per episode.
        world: (N,) labels.
        seed: (N,) labels of training seeds; none where nothing was trained.
        level: confidence.
    """
    cells = crossed_cells(values, world, seed)
    if cells.size == 0:
        return Interval(np.nan, -np.inf, np.inf)
    centre = float(cells.mean())
    if len(cells) < 2:
        return Interval(centre, -np.inf, np.inf)
    variance, freedom = variance_of_mean(cells)
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * float(np.sqrt(variance))
    return Interval(centre, centre - half, centre + half)


def variance_of_mean(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Estimate the variance of the mean of a crossed table (W, S), and its degrees of freedom.

    Mean squares of the two-way random-effects layout: (MS_W + MS_S - MS_E) / (W S), with the
    degrees of freedom after Satterthwaite (Biometrics Bulletin 2, 1946); never less than what
    worlds alone or seeds alone say.
    """
    num_worlds, num_seeds = cells.shape
    by_world, by_seed = cells.mean(1), cells.mean(0)
    worlds = num_seeds * float(by_world.var(ddof=1))
    if num_seeds == 1:
        return worlds / num_worlds, num_worlds - 1
    seeds = num_worlds * float(by_seed.var(ddof=1))
    rest = cells - by_world[:, None] - by_seed[None, :] + cells.mean()
    both = (num_worlds - 1) * (num_seeds - 1)
    error = float((rest**2).sum()) / both
    total = worlds + seeds - error
    if total <= max(worlds, seeds):
        alone = (worlds, num_worlds - 1) if worlds >= seeds else (seeds, num_seeds - 1)
        return alone[0] / cells.size, alone[1]
    parts = worlds**2 / (num_worlds - 1) + seeds**2 / (num_seeds - 1) + error**2 / both
    return total / cells.size, total**2 / parts


def paired_difference(
    treatment: ArrayLike,
    control: ArrayLike,
    world: ArrayLike,
    seed: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Compute the mean of treatment - control over the same episodes, with its interval.

    Args:
        treatment: (N,) one per episode.
        control: (N,) the same episodes in the same order.
        world: (N,) labels.
        seed: (N,) labels of training seeds; none where nothing was trained.
        level: confidence.
    """
    difference = np.asarray(treatment, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    return mean_interval(difference, world, seed, level)
