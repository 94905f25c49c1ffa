"""The picture of a diagnosis: what decides in a scenario, and where its time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png
from uara.figures.results import BEST_RULE, LEARNED, LINES, RULE


def draw_diagnosis(
    excess_percent: Mapping[str, float],
    modes: Mapping[str, tuple[float, float]],
    spread_s: Mapping[str, float],
    time_share: Mapping[str, float],
    path: Path,
) -> None:
    """Draw four panels: excesses over greedy, serving modes, simple rules, parts of the latency.

    Args:
        excess_percent: per figure of the diagnosis, per cent.
        modes: per serving mode, mean E2E latency and mean TPOT in seconds.
        spread_s: per rule, mean E2E latency in seconds.
        time_share: per part of the latency, its share of all request-seconds.
        path: PNG to write.
    """
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _bars(axes[0][0], excess_percent, "per cent", "What decides (excess, and loads of servers)")
    e2e_s = {
        f"{name}, {1e3 * tpot_s:.0f} ms per token": latency_s
        for name, (latency_s, tpot_s) in modes.items()
    }
    _bars(axes[0][1], e2e_s, "mean E2E latency (s)", "greedy_latency in each serving mode")
    _bars(axes[1][0], spread_s, "mean E2E latency (s)", "Rules in the task's own mode")
    _stack(axes[1][1], time_share)
    write_png(figure, path)


def _bars(ax: Axes, values: Mapping[str, float], unit: str, title: str) -> None:
    """Draw horizontal bars with their values, the first on top."""
    names = list(values)
    colours = [
        BEST_RULE if name == "greedy_latency" else (LEARNED if values[name] >= 0 else RULE)
        for name in names
    ]
    ax.barh(names, [values[name] for name in names], color=colours)
    ax.bar_label(ax.containers[0], fmt="%.1f", padding=3, fontsize=8)  # type: ignore[arg-type]
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel(unit)
    ax.set_title(title, fontsize=10)
    ax.tick_params(axis="y", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _stack(ax: Axes, share: Mapping[str, float]) -> None:
    """Draw the parts of the latency as one bar from left to right, each with its legend entry."""
    colours = (*LINES, "#F0E442", "#000000", RULE, BEST_RULE)
    start = 0.0
    for (name, part), colour in zip(share.items(), colours, strict=False):
        label = f"{name} {100 * part:.1f} %"
        ax.barh([0], [100 * part], left=100 * start, color=colour, label=label, height=0.5)
        start += part
    ax.set_ylim(-1.6, 0.6)
    ax.set_yticks([])
    ax.set_xlim(0, 100)
    ax.set_xlabel("per cent of all request-seconds")
    ax.set_title("Where requests spend their time", fontsize=10)
    ax.legend(loc="lower center", ncol=3, fontsize=8, frameon=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
