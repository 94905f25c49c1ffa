"""A picture of agreement: times per token by the prediction over those of the event judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uara.figures.png import write_png

COLOURS = ("#0072B2", "#999999", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_agreement(
    modes: Sequence[str],
    predicted_s: NDArray[np.float64],
    judged_s: NDArray[np.float64],
    load: NDArray[np.float64],
    path: Path,
) -> None:
    """Draw predicted over judged times per token, and the error over the offered load.

    Args:
        modes: name of each of N rows' mode.
        predicted_s: (N,) mean time per token of a server's devices.
        judged_s: (N,) the same by the judge.
        load: (N,) offered load of the server.
        path: PNG to write, whole or not at all.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    error = predicted_s / judged_s - 1
    names = list(dict.fromkeys(modes))
    for name, colour in zip(names, COLOURS, strict=False):
        mine = np.array([mode == name for mode in modes])
        style = {"color": colour, "label": name, "s": 14, "linewidths": 0}
        left.scatter(1e3 * judged_s[mine], 1e3 * predicted_s[mine], **style)
        right.scatter(load[mine], 100 * error[mine], **style)
    ends = 1e3 * np.array([judged_s.min(), judged_s.max()])
    left.plot(ends, ends, color="#333333", linewidth=0.8)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("time per token, event judge (ms)")
    left.set_ylabel("time per token, prediction (ms)")
    right.axhline(0, color="#333333", linewidth=0.8)
    right.set_xlabel("offered load of the server")
    right.set_ylabel("error (%)")
    for ax in (left, right):
        _tidy(ax)
    left.legend(frameon=False, loc="upper left")
    write_png(figure, path)


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e5e5e5")
    ax.set_axisbelow(True)
