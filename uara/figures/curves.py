"""Curves over training: the mean over seeds with its interval.

Shape legend: X points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uara.figures.results import LINES


@dataclass(frozen=True)
class Curve:
    """A mean and its interval over the steps of a training.

    Attributes:
        steps: (X,) network slots played.
        mean: (X,) over seeds.
        low: (X,) lower end of the interval; the mean itself where there is one seed.
        high: (X,) upper end.
    """

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def draw_curves(
    curves: Mapping[str, Curve], label: str, levels: Mapping[str, float] | None = None
) -> Figure:
    """Draw curves with their bands.

    Args:
        curves: per experiment.
        label: of the vertical axis, with its unit.
        levels: level lines to compare with, by name.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for number, (name, curve) in enumerate(curves.items()):
        colour = LINES[number % len(LINES)]
        thousands = curve.steps / 1e3
        axes.plot(thousands, curve.mean, color=colour, label=name, marker=".", markersize=3)
        axes.fill_between(thousands, curve.low, curve.high, color=colour, alpha=0.2, lw=0)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#777777", lw=0.8, ls="--")
        axes.annotate(
            name, (0, level), xycoords=("axes fraction", "data"), xytext=(2, 2),
            textcoords="offset points", fontsize=7, color="#555555",
        )  # fmt: skip
    axes.set_xlabel("network slots played (thousands)")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)
    return figure
