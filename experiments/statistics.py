"""Intervals of means and of paired differences, with episodes of one world and seed as clusters."""

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


def mean_interval(values: ArrayLike, cluster: ArrayLike, level: float = 0.95) -> Interval:
    """Compute the mean over clusters and its t interval.

    Episodes of one cluster (a world, or a world and a seed) share its tracks and fading and are not
    independent; the interval is that of the cluster means.

    Args:
        values: (N,) one per episode.
        cluster: (N,) labels.
        level: confidence.
    """
    means = cluster_means(values, cluster)
    centre = float(means.mean())
    if len(means) < 2:
        return Interval(centre, -np.inf, np.inf)
    error = float(means.std(ddof=1) / np.sqrt(len(means)))
    half = float(stats.t.ppf(0.5 + level / 2, len(means) - 1)) * error
    return Interval(centre, centre - half, centre + half)


def paired_difference(
    treatment: ArrayLike, control: ArrayLike, cluster: ArrayLike, level: float = 0.95
) -> Interval:
    """Compute the mean of treatment - control over the same episodes, with its interval.

    Args:
        treatment: (N,) one per episode.
        control: (N,) the same episodes in the same order.
        cluster: (N,) labels.
        level: confidence.
    """
    difference = np.asarray(treatment, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    return mean_interval(difference, cluster, level)
