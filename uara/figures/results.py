"""Pictures of results: learning curves and latency bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png

# Okabe and Ito's colours, told apart also by colour-blind readers.
LEARNED = "#0072B2"
RULE = "#999999"
BEST_RULE = "#D55E00"
LINES = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def draw_learning_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    references: Mapping[str, float],
    path: Path,
) -> None:
    """Draw validation latency over training, with rules as level lines.

    Args:
        curves: per learner, environment steps and mean E2E latency in seconds.
        references: per rule, its mean E2E latency in seconds on the same episodes.
        path: PNG to write.
    """
    figure, ax = _figure(7, 4)
    for (name, (steps, latency)), colour in zip(curves.items(), LINES, strict=False):
        ax.plot(np.asarray(steps) / 1e3, latency, color=colour, label=name, marker=".")
    for name, value in references.items():
        colour = BEST_RULE if name == "greedy_latency" else RULE
        ax.axhline(value, color=colour, linewidth=1, linestyle="--")
        ax.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=8, color=colour,
        )  # fmt: skip
    ax.set_xlabel("network slots played (thousands)")
    ax.set_ylabel("mean E2E latency on validation episodes (s)")
    ax.legend(frameon=False)
    write_png(figure, path)


def draw_latency_bars(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Draw mean E2E latency per controller with its 95 % interval, best on top.

    Args:
        rows: evaluation rows with `controller`, `observes` and `e2e_latency_s`
            `{"mean", "ci95"}`; `kind` tells a rule from a policy.
        path: PNG to write.
    """
    latency: list[tuple[float, float, float]] = []
    for row in rows:
        cell = row["e2e_latency_s"]
        assert isinstance(cell, Mapping)
        low, high = cell["ci95"]
        latency.append((cell["mean"], cell["mean"] - low, high - cell["mean"]))
    order = np.argsort([-mean for mean, _, _ in latency])
    figure, ax = _figure(7, 0.45 * len(rows) + 1)
    for place, index in enumerate(order):
        row, (mean, below, above) = rows[index], latency[index]
        colour = LEARNED if row.get("kind") == "policy" else RULE
        ax.barh(place, mean, color=colour, height=0.7)
        ax.errorbar(mean, place, xerr=[[below], [above]], color="black", capsize=3)
        ax.annotate(
            f"{mean:.2f} s", (mean + above, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    ax.set_yticks(
        range(len(rows)), [f"{rows[i]['controller']} ({rows[i]['observes']})" for i in order]
    )
    ax.set_xlabel("mean E2E latency (s), 95 % interval; blue: learned, grey: rules")
    write_png(figure, path)
