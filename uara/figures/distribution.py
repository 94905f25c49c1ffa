"""Distributions of a metric over episodes, one line per controller."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uara.figures.results import LINES

STYLES = ("-", "--", ":", "-.")


def draw_distributions(values: Mapping[str, NDArray[np.float64]], label: str) -> Figure:
    """Draw which share of episodes stays within each value.

    Args:
        values: per controller, one number per episode; not-a-number is left out.
        label: of the horizontal axis, with its unit.
    """
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for number, (name, sample) in enumerate(values.items()):
        axes.ecdf(
            sample[np.isfinite(sample)],
            color=LINES[number % len(LINES)],
            ls=STYLES[number // len(LINES) % len(STYLES)],
            label=name,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("share of episodes")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure
