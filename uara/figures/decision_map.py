"""Which server wins where: decisions of a controller over the places at which they were made.

Shape legend: N decisions, E servers.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from uara.figures.network_map import draw_sites, finish_map, legend_below, server_colour


def draw_decision_map(
    position_m: NDArray[np.float64],
    server: NDArray[np.int64],
    site_position_m: NDArray[np.float64],
    title: str,
) -> Figure:
    """Draw a dot per decision in the colour of the server that was chosen.

    Args:
        position_m: (N, 2) of the devices when they decided.
        server: (N,) chosen.
        site_position_m: (E, 2).
        title: over the picture.
    """
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    reach = 1.08 * float(np.abs(np.concatenate([position_m, site_position_m])).max())
    # Later dots hide earlier ones; in a mixed order no server hides the others.
    order = np.random.default_rng(0).permutation(len(server))
    colours = [server_colour(int(e)) for e in server[order]]
    x, y = position_m[order].T
    axes.scatter(x, y, c=colours, s=9, alpha=0.55, lw=0, rasterized=True)
    draw_sites(axes, site_position_m, reach)
    counts = np.bincount(server, minlength=len(site_position_m))
    share = counts / max(counts.sum(), 1)
    handles = [
        Line2D([], [], ls="", marker="o", color=server_colour(e), label=f"S{e}: {part:.0%}")
        for e, part in enumerate(share)
    ]
    legend_below(axes, handles)
    axes.set_title(title, fontsize=10)
    finish_map(axes, (-reach, reach), (-reach, reach))
    return figure
