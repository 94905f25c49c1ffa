"""PicoSpec's cells over round trips, bandwidths and draft lengths: points, tables, CSV, picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.progress import track
from rich.table import Table

from experiments.picospec import Cell, PicoSpecConfig, Setting, measure
from uara.decoding.overlap import Overlap
from uara.figures.draft_sweep import draw_draft_sweep
from uara.files import whole_file

Axis = Literal["rtt_ms", "bandwidth_mbps"]
AXES: dict[Axis, str] = {
    "rtt_ms": "round trip (ms)",
    "bandwidth_mbps": "bandwidth each way (Mbit/s)",
}
WINDOW = 2


@dataclass(frozen=True)
class SweepPoint:
    """Speed of one draft length over plain decoding of the target."""

    cell: str
    axis: Axis
    value: float
    draft_length: int
    ratio: float


def sweep(config: PicoSpecConfig) -> list[SweepPoint]:
    """Measure every cell over round trips, then over bandwidths at the nominal round trip."""
    jobs: list[tuple[Cell, Axis, float, int]] = [
        (cell, axis, value, length)
        for cell in config.cells
        for axis in AXES
        for value in _values(config, axis)
        for length in range(1, config.max_draft_length + 1)
    ]
    return [_point(config, *job) for job in track(jobs, description="sweep", transient=True)]


def _values(config: PicoSpecConfig, axis: Axis) -> list[float]:
    if axis == "rtt_ms":
        return [1e3 * rtt_s for rtt_s in config.sweep_rtt_s]
    return [rate / 1e6 for rate in config.sweep_bps]


def _point(config: PicoSpecConfig, cell: Cell, axis: Axis, value: float, length: int) -> SweepPoint:
    rtt_s = config.rtt_grid_s[0]
    if axis == "rtt_ms":
        rtt_s = value / 1e3
    else:
        config = config.model_copy(update={"link_bps": value * 1e6})
    speed = measure(
        config, cell, Setting(Overlap(WINDOW), length, rtt_s), tokens=config.tokens // 6
    )
    return SweepPoint(cell.name, axis, value, length, speed.tokens_per_s / cell.ar_tokens_per_s)


def sweep_tables(points: Sequence[SweepPoint]) -> list[Table]:
    """Lay points out, a table per cell and axis: a row per value, a column per draft length."""
    tables = []
    for axis, label in AXES.items():
        for cell in dict.fromkeys(point.cell for point in points):
            table = Table(title=f"{cell}, window {WINDOW}: speed over plain decoding")
            own = [p for p in points if (p.cell, p.axis) == (cell, axis)]
            table.add_column(label)
            for length in dict.fromkeys(point.draft_length for point in own):
                table.add_column(f"n={length}")
            for value in dict.fromkeys(point.value for point in own):
                ratios = [f"{p.ratio:.2f}" for p in own if p.value == value]
                table.add_row(f"{value:g}", *ratios)
            tables.append(table)
    return tables


def write_csv(points: Sequence[SweepPoint], path: Path) -> None:
    """Write a line per point; the file appears whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SweepPoint.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def draw(points: Sequence[SweepPoint], path: Path) -> None:
    """Draw a line per draft length, a column per cell, a row per axis."""
    panels: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    for point in points:
        lines = panels.setdefault(AXES[point.axis], {}).setdefault(point.cell, {})
        lines.setdefault(point.draft_length, []).append((point.value, point.ratio))
    draw_draft_sweep(panels, path)
