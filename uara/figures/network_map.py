"""Maps: a bank's tracks and cells, and one network at one time.

Shape legend: W worlds, T slots, M devices, E servers, N points, H x W pixels of an image.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Wedge
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.spatial import KDTree

from uara.figures.png import write_png
from uara.radio.bank import ChannelBank

# Okabe and Ito's palette, which people with any colour vision tell apart.
SERVER_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
_GREY = "#8a8a8a"
_INK = "#222222"
_LATENCY_MAP = "viridis_r"  # dark is late

_GRID = 140  # pixels of the background along one side
_NEIGHBOURS = 40  # samples that vote on a pixel's best server


def server_colour(server: int) -> str:
    """Colour of a server; beyond seven servers colours repeat and the labels tell."""
    return SERVER_COLOURS[server % len(SERVER_COLOURS)]


def draw_bank_preview(bank: ChannelBank, world: int, path: Path | str) -> None:
    """Draw one world of a bank into a PNG: its tracks, the cells, and how much choice there is.

    Tracks are coloured by the server with the strongest gain; so is the paler background, from
    the mean gain in dB of the nearest samples of all worlds.

    Args:
        bank: the bank.
        world: index of the world.
        path: where the PNG goes.

    Raises:
        UserError: the bank has no such world.
    """
    bank.check_has(world)
    figure = Figure(figsize=(11.5, 6.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.55, 1.0))
    _draw_cells_and_tracks(figure.add_subplot(grid[:, 0]), bank, world)
    _draw_gain_histogram(figure.add_subplot(grid[0, 1]), bank)
    _draw_gain_over_time(figure.add_subplot(grid[1, 1]), bank, world)
    write_png(figure, Path(path), figure.dpi)


def _draw_cells_and_tracks(ax: Axes, bank: ChannelBank, world: int) -> None:
    """Draw the background cells, the sites and the tracks of one world."""
    position = bank.position_m[world].astype(float)  # (T, M, 2)
    best = bank.gain_db[world].argmax(axis=-1)  # (T, M)
    reach = 1.06 * float(np.hypot(bank.position_m[..., 0], bank.position_m[..., 1]).max())
    ax.imshow(
        _cell_image(bank, reach),
        extent=(-reach, reach, -reach, reach),
        origin="lower",
        interpolation="nearest",
    )
    for m in range(position.shape[1]):
        track = position[:, m]
        lines = np.stack([track[:-1], track[1:]], axis=1)
        colours = [server_colour(int(e)) for e in best[:-1, m]]
        ax.add_collection(LineCollection(list(lines), colors="white", linewidths=4.2, zorder=2))
        ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=2.4, zorder=3))
        ax.plot(*track[0], "o", ms=6, mfc="white", mec=_INK, zorder=4)
        ax.annotate(
            f"{m}", track[0], (5, 4), textcoords="offset points", fontsize=8, color=_INK, zorder=6
        )
    draw_sites(ax, bank.site_position_m.astype(float), reach)
    los = float(bank.is_los[world].mean())
    best_los = np.take_along_axis(bank.is_los[world], best[..., None], axis=-1).mean()
    ax.set_title(
        f"World {world}: strongest server along {position.shape[1]} tracks\n"
        f"line of sight: {los:.0%} of links, {best_los:.0%} of strongest links",
        fontsize=11,
    )
    handles = [
        Line2D([], [], color=server_colour(e), lw=3, label=f"server {e} strongest")
        for e in range(min(bank.site_position_m.shape[0], len(SERVER_COLOURS)))
    ]
    start = Line2D([], [], ls="", marker="o", mfc="white", mec=_INK, label="device at the start")
    legend_below(ax, [*handles, start])
    limits = (-1.1 * reach, 1.1 * reach)  # room for the labels of sites on the border
    finish_map(ax, limits, limits)


def _cell_image(bank: ChannelBank, reach: float) -> NDArray[np.float64]:
    """Paint each pixel within reach with a pale tint of its strongest server, (H, W, 4)."""
    points = bank.position_m.reshape(-1, 2).astype(float)
    gain_db = bank.gain_db.reshape(len(points), -1).astype(float)
    centre = (np.arange(_GRID) + 0.5) / _GRID * 2 * reach - reach
    x, y = np.meshgrid(centre, centre)
    count = min(_NEIGHBOURS, len(points))
    _, index = KDTree(points).query(np.stack([x, y], axis=-1), k=count)
    index = np.asarray(index).reshape(_GRID, _GRID, count)
    best = gain_db[index].mean(axis=2).argmax(axis=-1)
    palette = np.array([to_rgb(server_colour(e)) for e in range(gain_db.shape[1])])
    inside = np.hypot(x, y) <= reach / 1.03
    return np.concatenate([palette[best], 0.22 * inside[..., None]], axis=-1)


def _draw_gain_histogram(ax: Axes, bank: ChannelBank) -> None:
    """Draw how strong the best and the second-best server are, over all worlds."""
    ranked = np.sort(bank.gain_db.astype(float), axis=-1)
    series = [("best server", ranked[..., -1], SERVER_COLOURS[0], "-")]
    if ranked.shape[-1] > 1:
        series.append(("second best", ranked[..., -2], SERVER_COLOURS[4], "--"))
    low, high = (np.quantile(ranked[..., -2:], q) for q in (0.001, 0.999))
    bins = np.linspace(low, high, 50).tolist()
    for label, gain_db, colour, style in series:
        median = float(np.median(gain_db))
        weights = np.full(gain_db.size, 100 / gain_db.size)
        ax.hist(gain_db.ravel(), bins, weights=weights, color=colour, alpha=0.25)
        ax.hist(
            gain_db.ravel(),
            bins,
            weights=weights,
            histtype="step",
            color=colour,
            ls=style,
            lw=1.6,
            label=f"{label}, median {median:.0f} dB",
        )
    ax.set(xlabel="path gain [dB]", ylabel="share of device-slots [%]")
    ax.set_title(f"Gain over all {bank.gain_db.shape[0]} worlds", fontsize=11)
    ax.legend(fontsize=8)
    _lighten(ax)


def _draw_gain_over_time(ax: Axes, bank: ChannelBank, world: int) -> None:
    """Draw the gains of the device that changes its strongest server most often."""
    best = bank.gain_db[world].argmax(axis=-1)
    device = int((best[1:] != best[:-1]).sum(axis=0).argmax())
    gain_db = bank.gain_db[world, :, device].astype(float)
    time_s = np.arange(gain_db.shape[0]) * bank.config.slot_s
    for e in range(gain_db.shape[1]):
        ax.plot(time_s, gain_db[:, e], color=server_colour(e), lw=1.4, label=f"server {e}")
    ax.set(xlabel="time [s]", ylabel="path gain [dB]")
    ax.set_title(f"Gains of device {device} in world {world}", fontsize=11)
    _lighten(ax)


def draw_network(
    ax: Axes | None,
    *,
    site_position_m: NDArray[Any],
    device_position_m: NDArray[Any],
    server: NDArray[Any],
    latency_s: NDArray[Any],
    server_load: NDArray[Any],
    title: str = "",
) -> NDArray[np.uint8]:
    """Draw who uses which server, how late devices are and how loaded servers are.

    Args:
        ax: where to draw; None makes a figure of 640 x 560 pixels.
        site_position_m: (E, 2).
        device_position_m: (M, 2).
        server: (M,) index of the device's server; -1 for none.
        latency_s: (M,) drawn as colour; not a number where a device has no request.
        server_load: (E,) in [0, 1], drawn as the filled part of a ring.
        title: of the map.

    Returns:
        the whole figure as an image, (H, W, 3).
    """
    site, device = np.asarray(site_position_m, float), np.asarray(device_position_m, float)
    server, latency_s = np.asarray(server, int), np.asarray(latency_s, float)
    if ax is None:
        # Fixed places: fitting the layout would double the time of a picture.
        figure = Figure(figsize=(6.4, 5.6), dpi=100)
        ax = figure.add_axes((0.11, 0.14, 0.86, 0.8))
    else:
        root = ax.get_figure(root=True)
        assert root is not None, "the axes belong to a figure"
        figure = root
    points = np.concatenate([site, device])
    low, high = points.min(axis=0), points.max(axis=0)
    span = max(float((high - low).max()), 1.0)

    linked = server >= 0
    ax.add_collection(
        LineCollection(
            [np.stack([device[m], site[server[m]]]) for m in np.flatnonzero(linked)],
            colors=[server_colour(int(e)) for e in server[linked]],
            linewidths=1.6,
            alpha=0.75,
            zorder=2,
        )
    )
    _draw_loads(ax, site, np.asarray(server_load, float), span)
    draw_sites(ax, site, span)
    _draw_devices(ax, device, linked, latency_s)
    ax.set_title(title, fontsize=11)
    middle, half = (low + high) / 2, 0.5 * span + 0.1 * span
    x_limits = (middle[0] - half, middle[0] + half)
    finish_map(ax, x_limits, (middle[1] - half, middle[1] + half))
    return _image(figure)


def network_figure(**network: Any) -> Figure:
    """Draw a network as `draw_network` does, as a figure of its own for a page."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    draw_network(figure.add_subplot(), **network)
    return figure


def _draw_devices(
    ax: Axes, device: NDArray[Any], linked: NDArray[Any], latency_s: NDArray[Any]
) -> None:
    """Draw devices coloured by latency; hollow without a server, grey without a request."""
    known = np.isfinite(latency_s)
    late_s = float(latency_s[known].max()) if known.any() else 1.0
    norm = Normalize(0.0, max(late_s, 1e-3))
    idle = ~known
    for chosen, edge, face in (
        (linked & known, _INK, None),
        (linked & idle, _INK, "#d0d0d0"),
        (~linked, _GREY, "white"),
    ):
        if not chosen.any():
            continue
        colour: dict[str, Any] = {"color": face}
        if face is None:
            colour = {"c": latency_s[chosen], "cmap": _LATENCY_MAP, "norm": norm}
        x, y = device[chosen].T
        dots = ax.scatter(x, y, s=62, edgecolors=edge, zorder=5, **colour)
        if face is None:
            bar = ax.figure.colorbar(dots, ax=ax, shrink=0.7, pad=0.02)
            bar.set_label("latency [s]")
    for m, where in enumerate(device):
        ax.annotate(
            f"{m}", where, (6, 4), textcoords="offset points", fontsize=7, color=_INK, zorder=6
        )
    handles = [
        Line2D([], [], color=_INK, marker="^", ls="", ms=8, label="site, ring: load"),
        Line2D([], [], color=_GREY, mfc="white", marker="o", ls="", label="no server"),
        Line2D([], [], color=_INK, mfc="#d0d0d0", marker="o", ls="", label="no request"),
    ]
    shown = [handles[0]]
    shown += [handles[1]] if (~linked).any() else []
    shown += [handles[2]] if (linked & idle).any() else []
    legend_below(ax, shown)


def _draw_loads(ax: Axes, site: NDArray[Any], load: NDArray[Any], span: float) -> None:
    """Draw a ring about each site, filled clockwise from the top by the server's load."""
    outer = 0.055 * span
    for e, where in enumerate(site):
        centre = (float(where[0]), float(where[1]))
        ring = Wedge(centre, outer, 0, 360, width=0.3 * outer, fc="#e4e4e4", ec="none", zorder=3)
        ax.add_patch(ring)
        angle = 360 * float(np.clip(load[e], 0.0, 1.0))
        ax.add_patch(
            Wedge(
                centre,
                outer,
                90 - angle,
                90,
                width=0.3 * outer,
                fc=server_colour(e),
                ec="none",
                zorder=3,
            )
        )


def draw_sites(ax: Axes, site: NDArray[Any], span: float) -> None:
    """Draw sites as triangles with their server's number."""
    for e, where in enumerate(site):
        ax.plot(*where, "^", ms=11, mfc=server_colour(e), mec=_INK, zorder=5)
        ax.annotate(
            f"S{e}",
            where,
            (12, 8),
            textcoords="offset points",
            fontsize=10,
            fontweight="bold",
            color=_INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=7,
        )


def finish_map(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Give a map equal scales, limits and labels."""
    ax.set(xlim=x, ylim=y, aspect="equal", xlabel="x [m]", ylabel="y [m]")
    _lighten(ax)


def legend_below(ax: Axes, handles: list[Line2D]) -> None:
    """Put a legend where it hides nothing."""
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        ncols=4,
        fontsize=8,
        frameon=False,
    )


def _lighten(ax: Axes) -> None:
    """Keep the frame behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)


def _image(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure to (H, W, 3) without pyplot, whose state is global."""
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw", dpi=figure.dpi)
    width, height = canvas.get_width_height()
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    return pixels[..., :3].copy()
