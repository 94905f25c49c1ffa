"""A picture of fading: how gains are distributed, and how a channel forgets itself over time.

Shape legend: N samples, L lags.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import j0

from uara.figures.png import write_png

Array = NDArray[np.float64]

# Okabe and Ito's colours, told apart also by colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_STYLES = {"cir": "-", "large_scale": "--"}


def draw_fading(
    gains: Mapping[str, Mapping[str, Array]],
    lags: Array,
    autocorrelations: Mapping[str, Array],
    path: Path,
) -> None:
    """Draw distributions of gain and autocorrelations of several ways of fading into a PNG.

    Args:
        gains: per scenario and way of fading (`cir`, `large_scale`), gains (N,) in dB.
        lags: (L,) time in units of one over the Doppler frequency.
        autocorrelations: per way of fading, (L,).
        path: PNG to write, whole or not at all.
    """
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_distributions(left, gains)
    _draw_autocorrelations(right, lags, autocorrelations)
    write_png(figure, path, figure.dpi)


def _draw_distributions(ax: Axes, gains: Mapping[str, Mapping[str, Array]]) -> None:
    """Draw the share of links below each gain."""
    for (scenario, by_fading), colour in zip(gains.items(), _COLOURS, strict=False):
        for fading, gain_db in by_fading.items():
            share = np.arange(1, gain_db.size + 1) / gain_db.size
            ax.plot(
                np.sort(gain_db),
                100 * share,
                color=colour,
                linestyle=_STYLES[fading],
                linewidth=1.6,
                label=f"{scenario}, {fading}",
            )
    ax.set(xlabel="path gain [dB]", ylabel="share of links below [%]", ylim=(0, 100))
    ax.set_title("Gain in one slot", fontsize=11)
    ax.legend(fontsize=8, loc="upper left")
    _lighten(ax)


def _draw_autocorrelations(ax: Axes, lags: Array, curves: Mapping[str, Array]) -> None:
    """Draw autocorrelations over Clarke's."""
    ax.plot(lags, j0(2 * np.pi * lags), color="#bbbbbb", linewidth=5, label="Clarke's model, J0")
    for (fading, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        ax.plot(lags, curve, color=colour, linestyle=_STYLES[fading], label=fading)
    ax.set(xlabel="time x Doppler frequency", ylabel="autocorrelation of one tone")
    ax.set_title("Links without line of sight", fontsize=11)
    ax.legend(fontsize=8)
    _lighten(ax)


def _lighten(ax: Axes) -> None:
    """Take away what carries no information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#eeeeee")
    ax.set_axisbelow(True)
