"""Maps of a traced city: path gain over its streets, and the tracks of one world between buildings.

Shape legend: T slots, M devices, E servers, H x V pixels of a map, rows northwards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from uara.figures.network_map import (
    draw_sites,
    finish_map,
    legend_below,
    server_colour,
)
from uara.figures.png import write_png
from uara.radio.backends import RadioMap
from uara.radio.bank import ChannelBank

_BUILDING_M = 0.5  # what is higher is no street
_WEAKEST_DB, _STRONGEST_DB = -140.0, -70.0
_BUILDINGS = ListedColormap(["#b9b4ae"])


def draw_city_map(radio_map: RadioMap, bank: ChannelBank, world: int, path: Path | str) -> None:
    """Draw the strongest path gain over a city and, beside it, the tracks of one world, as PNG.

    Args:
        radio_map: what the city looks like.
        bank: the bank traced in it.
        world: index of the world.
        path: where the PNG goes.

    Raises:
        UserError: the bank has no such world.
    """
    bank.check_has(world)
    figure = Figure(figsize=(13.0, 6.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_gain(left, radio_map)
    _draw_tracks(right, radio_map, bank, world)
    write_png(figure, Path(path), figure.dpi)


def _draw_gain(ax: Axes, radio_map: RadioMap) -> None:
    """Draw the gain from the strongest site, buildings over it."""
    best_db = radio_map.gain_db.max(axis=0)
    reach = radio_map.extent_m
    shown = np.where(best_db > radio_map.gain_db.min() + 1e-6, best_db, np.nan)
    image = ax.imshow(
        shown,
        extent=(-reach, reach, -reach, reach),
        origin="lower",
        cmap="viridis",
        vmin=_WEAKEST_DB,
        vmax=_STRONGEST_DB,
        interpolation="nearest",
    )
    _draw_buildings(ax, radio_map)
    draw_sites(ax, radio_map.site_m[:, :2], reach)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02, extend="both")
    bar.set_label("path gain from the strongest site [dB]")
    ax.set_title("Radio map at device height (white: no path found)", fontsize=11)
    finish_map(ax, (-reach, reach), (-reach, reach))


def _draw_tracks(ax: Axes, radio_map: RadioMap, bank: ChannelBank, world: int) -> None:
    """Draw the tracks of one world, coloured by their strongest server."""
    reach = radio_map.extent_m
    position = bank.position_m[world].astype(float)  # (T, M, 2)
    best = bank.gain_db[world].argmax(axis=-1)  # (T, M)
    _draw_buildings(ax, radio_map)
    for m in range(position.shape[1]):
        lines = np.stack([position[:-1, m], position[1:, m]], axis=1)
        colours = [server_colour(int(e)) for e in best[:-1, m]]
        ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=2.2, zorder=3))
        ax.plot(*position[0, m], "o", ms=6, mfc="white", mec="#222222", zorder=4)
    draw_sites(ax, radio_map.site_m[:, :2], reach)
    duration_s = bank.config.num_slots * bank.config.slot_s
    ax.set_title(
        f"World {world}: {position.shape[1]} devices in {duration_s:.0f} s, "
        f"line of sight on {bank.is_los[world].mean():.0%} of links",
        fontsize=11,
    )
    handles = [
        Line2D([], [], color=server_colour(e), lw=3, label=f"server {e} strongest")
        for e in range(bank.config.num_servers)
    ]
    start = Line2D([], [], ls="", marker="o", mfc="white", mec="#222222", label="device at start")
    legend_below(ax, [*handles, start])
    finish_map(ax, (-reach, reach), (-reach, reach))


def _draw_buildings(ax: Axes, radio_map: RadioMap) -> None:
    """Paint what rises above the street."""
    reach = radio_map.extent_m
    ax.imshow(
        np.where(radio_map.height_m > _BUILDING_M, 1.0, np.nan),
        extent=(-reach, reach, -reach, reach),
        origin="lower",
        cmap=_BUILDINGS,
        interpolation="nearest",
    )
