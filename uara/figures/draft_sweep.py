"""The picture of speeds over round trip and bandwidth, a line per draft length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png

# Per draft length: (value on the axis, speed over the server alone).
Lines = Mapping[int, Sequence[tuple[float, float]]]


def draw_draft_sweep(panels: Mapping[str, Mapping[str, Lines]], path: Path) -> None:
    """Draw a row of panels per axis and a column per cell.

    Args:
        panels: per axis label and cell, its lines.
        path: PNG to write.
    """
    columns = max(len(cells) for cells in panels.values())
    size = (3.1 * columns + 0.6, 2.8 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), columns, sharey="col", squeeze=False)
    for axes, (label, cells) in zip(grid, panels.items(), strict=True):
        for ax, (name, lines) in zip(axes, cells.items(), strict=False):
            for length, points in lines.items():
                colour = colormaps["viridis"](0.95 * (length - 1) / max(len(lines) - 1, 1))
                x, y = zip(*points, strict=True)
                ax.plot(x, y, "o-", color=colour, markersize=3, label=f"n = {length}")
            ax.axhline(1.0, color="black", linestyle="--", linewidth=0.8)
            ax.set_xscale("log")
            ax.set_xlabel(label)
            ax.set_title(name, fontsize=10)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.3)
        axes[0].set_ylabel("speed over plain decoding")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    write_png(figure, path)
