"""The picture of how the environment's step grows with the number of devices and servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png
from uara.figures.results import LINES


def draw_growth(rows: Mapping[str, Sequence[tuple[float, float, float]]], path: Path) -> None:
    """Draw time per step and peak memory over the number of (device, server) pairs.

    Args:
        rows: per kind of code, its sizes: pairs, microseconds per network and slot, peak MiB.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (name, sizes), colour in zip(rows.items(), LINES, strict=False):
        pairs = [size[0] for size in sizes]
        left.plot(pairs, [size[1] for size in sizes], "o-", color=colour, label=name)
        right.plot(pairs, [size[2] for size in sizes], "o-", color=colour, label=name)
    left.set_ylabel("microseconds per network and slot")
    left.set_yscale("log")
    right.set_ylabel("peak memory of the process (MiB)")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xlabel("devices x servers")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    write_png(figure, path)
