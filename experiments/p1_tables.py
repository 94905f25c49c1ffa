"""Tables, rows and figure of the comparison on P1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.config import load_as
from experiments.p1 import (
    BASELINES,
    BOUND,
    PAPER_MAX_PERCENT,
    PAPER_MEAN_PERCENT,
    Cell,
    P1Experiment,
    Progress,
    Reductions,
    Setting,
    Variant,
    reductions,
    refuse_options,
    run_grid,
    run_variants,
)
from experiments.statistics import Interval, mean_interval
from experiments.tables import write_csv
from uara.figures.p1 import draw_p1

DRAWN = (*BASELINES, "greedy", "tma", "tma_moves")


@dataclass(frozen=True)
class P1Result:
    """All that an evaluation of P1 brings."""

    config: P1Experiment
    cells: list[Cell]
    variants: list[Variant]

    @property
    def names(self) -> list[tuple[str, str]]:
        """Rows of the grid, the bound last."""
        rules = [cell.row for cell in self.cells if cell.association != BOUND]
        return [*dict.fromkeys(rules), (BOUND, "any")]

    def latency(self, row: tuple[str, str], setting: Setting) -> Interval:
        """Average a row's latency over the drops of a setting, in seconds."""
        (cell,) = (c for c in self.cells if c.row == row and c.setting == setting)
        return mean_interval(cell.latency_s, np.arange(len(cell.latency_s)))

    def rows(self) -> list[dict[str, object]]:
        """List everything as flat rows with intervals."""
        latencies: list[dict[str, object]] = [
            {
                "kind": "latency",
                "association": row[0],
                "allocator": row[1],
                "devices": setting[0],
                "servers": setting[1],
                "latency_s": self.latency(row, setting).as_json(),
            }
            for row in self.names
            for setting in self.config.settings
        ]
        averages = [reductions(self.cells, row).as_json() for row in self.names]
        readings = [
            found.as_json() | {"reading": variant.name}
            for variant in self.variants
            for found in (variant.matching, variant.both, variant.best, variant.bound)
        ]
        return [*latencies, *averages, *readings]

    def tables(self) -> list[Table]:
        """Make the tables for the terminal."""
        return [self._latency_table(), self._reduction_table(), self._variant_table()]

    def _latency_table(self) -> Table:
        table = Table(title=f"{self.config.name}: mean latency as read (ms), {_drops(self)}")
        table.add_column("association")
        table.add_column("shares")
        for devices, servers in self.config.settings:
            table.add_column(f"M {devices}\nE {servers}", justify="right")
        for row in self.names:
            cells = (f"{1e3 * self.latency(row, s).mean:.1f}" for s in self.config.settings)
            table.add_row(*row, *cells)
        return table

    def _reduction_table(self) -> Table:
        table = Table(title="per cent below the baselines with equal shares, mean over settings")
        table.add_column("association")
        table.add_column("shares")
        for name in (*BASELINES, "mean of three"):
            table.add_column(name, justify="right")
        table.add_column("largest mean\nof a setting", justify="right")
        for row in self.names:
            found = reductions(self.cells, row)
            cells = (_percent(found.against[name]) for name in BASELINES)
            table.add_row(*row, *cells, _percent(found.mean), _largest(found))
        table.caption = (
            f"the paper: mean {PAPER_MEAN_PERCENT} %, at most {PAPER_MAX_PERCENT} % below "
            "'reference schemes'"
        )
        return table

    def _variant_table(self) -> Table:
        table = Table(title="what the reading decides: per cent below the baselines")
        table.add_column("reading")
        for name in BASELINES:
            table.add_column(f"tma, exact\n{name}", justify="right")
        for name in ("tma, exact\nmean", "exact over\nequal shares", "tma_moves,\nexact mean",
                     "bound\nmean"):  # fmt: skip
            table.add_column(name, justify="right")
        for variant in self.variants:
            table.add_row(
                variant.name,
                *(f"{variant.both.against[name].mean:.1f}" for name in BASELINES),
                _percent(variant.both.mean),
                f"{variant.shares:.1f}",
                _percent(variant.best.mean),
                f"{variant.bound.mean.mean:.1f}",
            )
        return table

    def draw(self, path: Path) -> None:
        """Draw latencies over M and over E, and what readings decide."""
        config = self.config
        by_devices = [(m, config.servers_fixed) for m in config.devices]
        by_servers = [(config.devices_fixed, e) for e in config.servers]
        rows = [(name, "uniform") for name in DRAWN if name in config.associations]
        rows.append((BOUND, "any"))
        curves = {
            label: {
                row[0]: [(s[axis], 1e3 * self.latency(row, s).mean) for s in settings]
                for row in rows
            }
            for label, axis, settings in (
                (f"devices, {config.servers_fixed} servers", 0, by_devices),
                (f"servers, {config.devices_fixed} devices", 1, by_servers),
            )
        }
        bars = {
            v.name: (v.both.mean.mean, v.best.mean.mean, v.bound.mean.mean) for v in self.variants
        }
        draw_p1(curves, bars, (PAPER_MEAN_PERCENT, PAPER_MAX_PERCENT), path)


def _drops(result: P1Result) -> str:
    return f"{result.config.drops} drops"


def _percent(cell: Interval) -> str:
    return f"{cell.mean:.1f} ±{(cell.high - cell.low) / 2:.1f}"


def _largest(found: Reductions) -> str:
    return f"{max(found.largest.values()):.1f}"


def evaluate_p1(
    path: Path,
    overrides: list[str] | None,
    policy: Sequence[Path] | None = None,
    controller: Sequence[str] | None = None,
    *,
    csv: Path | None = None,
    figure: Path | None = None,
    progress: Progress | None = None,
) -> P1Result:
    """Run the comparison of a file of kind `uara-p1`, and write what is asked for.

    Raises:
        UserError: for a wrong file, or options that belong to tasks.
    """
    refuse_options(policy, controller)
    config = load_as(P1Experiment, path, overrides)
    total = len(config.settings) + len(config.variants) + 1

    def shifted(first: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, _: progress(first + done, total)

    cells = run_grid(config, progress=shifted(0))
    result = P1Result(config, cells, run_variants(config, progress=shifted(len(config.settings))))
    if csv is not None:
        write_csv(csv, result.rows())
    if figure is not None:
        result.draw(figure)
    return result
