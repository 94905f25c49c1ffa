"""The picture of the comparison on problem P1: latency over sizes, and what readings decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png
from uara.figures.results import BEST_RULE, LINES, RULE

Curve = Sequence[tuple[float, float]]  # (size, milliseconds)


def draw_p1(
    curves: Mapping[str, Mapping[str, Curve]],
    bars: Mapping[str, tuple[float, float, float]],
    paper_percent: tuple[float, float],
    path: Path,
) -> None:
    """Draw mean latency over each size, and reductions per reading.

    Args:
        curves: per label of an axis, per rule its points; the last rule is the lower bound.
        bars: per reading, per cent below the baselines of the paper's association, of the best
            association and of the bound.
        paper_percent: the paper's mean and largest reduction.
        path: PNG to write.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    for ax, (label, lines) in zip(axes, curves.items(), strict=False):
        _draw_curves(ax, label, lines)
    axes[0].set_ylabel("mean latency as read (ms), equal shares")
    axes[0].legend(frameon=False, fontsize=8)
    _draw_readings(axes[2], bars, paper_percent)
    write_png(figure, path)


def _draw_curves(ax: Axes, label: str, lines: Mapping[str, Curve]) -> None:
    colours = dict(zip(lines, (RULE, *LINES, BEST_RULE), strict=False))
    *rules, bound = lines
    for name in (*rules, bound):
        x, y = zip(*lines[name], strict=True)
        if name == bound:
            ax.plot(x, y, "--", color="black", label=name)
        else:
            ax.plot(x, y, "o-", color=colours[name], label=name, markersize=3)
    ax.set_yscale("log")
    ax.set_xlabel(label)
    ax.grid(alpha=0.3, which="both")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_readings(
    ax: Axes, bars: Mapping[str, tuple[float, float, float]], paper_percent: tuple[float, float]
) -> None:
    names = ("tma, exact shares", "tma_moves, exact shares", "bound")
    for place, values in enumerate(reversed(list(bars.values()))):
        for value, marker, colour, label in zip(
            values, ("o", "s", "|"), (LINES[0], BEST_RULE, "black"), names, strict=True
        ):
            ax.plot(
                value, place, marker, color=colour, label=label if place == 0 else None,
                markersize=9 if marker == "|" else 5,
            )  # fmt: skip
    low, high = paper_percent
    ax.axvspan(low, high, color="#56B4E9", alpha=0.3, label="printed: mean to largest")
    ax.set_yticks(range(len(bars)), list(reversed(list(bars))), fontsize=8)
    ax.set_xlabel("per cent below the mean of the three baselines")
    ax.grid(alpha=0.3, axis="x")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
