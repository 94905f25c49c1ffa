"""Tables of `uara plan` for the terminal, and its rows for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.plan import ComparisonRow, ExtensionRow, PlanReport, SweepRow, Value
from experiments.statistics import Interval
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Plan
from uara.control.plan.replay import Replay


def plan_table(plan: Plan, seen: Replay, config: HetEdgeConfig) -> Table:
    """Show the batches of a plan in the order of service."""
    table = Table(title=f"plan of the first drop: {plan.completion_s:.2f} s")
    columns = ("batch", "wave", "tasks", "prompt", "drafts", "rounds", "cache (GB)",
               "bandwidth (kHz)", "there (s)", "done (s)")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right")
    for number, batch in enumerate(plan.batches):
        widths = [plan.bandwidth_hz[k] / 1e3 for k in batch.tasks]
        table.add_row(
            str(number + 1), str(batch.wave + 1), str(len(batch.tasks)), str(batch.input_tokens),
            str(batch.draft_length), str(batch.rounds), f"{batch.cache_bytes / 1e9:.2f}",
            f"{min(widths):.1f} - {max(widths):.1f}", f"{batch.release_s:.3f}",
            f"{batch.completion_s:.2f}",
        )  # fmt: skip
    most = max(batch.cache_bytes for batch in plan.batches) + plan.weight_bytes
    table.caption = (
        f"uploads: {plan.upload}; draft node: {most / 1e9:.1f} GB with the largest batch, "
        f"{seen.peak_memory_bytes / 1e9:.1f} GB with all in flight, "
        f"{config.memory_bytes / 1e9:.1f} GB there"
    )
    return table


def comparison_table(rows: Sequence[ComparisonRow], drops: int) -> Table:
    """Show reductions of latency, the paper's beside ours."""
    table = Table(title=f"less time than the baseline, per cent; mean of {drops} drops, 95 %")
    table.add_column("against")
    table.add_column("at")
    for name in ("paper", "ours", "plan (s)", "baseline (s)"):
        table.add_column(name, justify="right")
    table.add_column("read as")
    for row in rows:
        printed = "-" if row.printed_percent is None else f"{row.printed_percent:.1f}"
        table.add_row(
            row.against, _options(row.changes), printed, _interval(row.percent),
            f"{row.own_s.mean:.1f}", f"{row.baseline_s.mean:.1f}", row.read_as + _bits(row),
        )  # fmt: skip
    return table


def extension_table(rows: Sequence[ExtensionRow]) -> Table:
    """Show what other planners take off the file's own."""
    table = Table(title="other planners: less time than the plan above, per cent")
    table.add_column("planner")
    table.add_column("at")
    table.add_column("less time", justify="right")
    table.add_column("plan (s)", justify="right")
    for row in rows:
        figures = (_interval(row.percent), f"{row.own_s.mean:.1f}")
        table.add_row(row.name, _options(row.at), *figures)
    return table


def sweep_table(rows: Sequence[SweepRow], changes: Mapping[str, Value]) -> Table:
    """Show reductions over the values of an option."""
    table = Table(title=f"less time than baselines over {rows[0].option}, per cent")
    table.add_column(rows[0].option, justify="right")
    for name in rows[0].percent:
        table.add_column(name, justify="right")
    table.add_column("plan (s)", justify="right")
    for row in rows:
        cells = (_interval(interval) for interval in row.percent.values())
        table.add_row(str(row.value), *cells, f"{row.own_s.mean:.1f}")
    if changes:
        table.caption = f"at {_options(changes)}"
    return table


def report_rows(report: PlanReport, seen: Replay) -> list[object]:
    """List everything as JSON rows: the plan, comparisons, extensions, sweeps."""
    plan = {"kind": "plan", "completion_s": report.plan.completion_s}
    peak = {"peak_memory_bytes": seen.peak_memory_bytes}
    rows: list[object] = [plan | dataclasses.asdict(report.plan) | peak]
    rows += [{"kind": "comparison"} | _row_json(row) for row in report.comparisons]
    rows += [{"kind": "extension"} | _row_json(row) for row in report.extensions]
    rows += [{"kind": "sweep"} | _row_json(row) for sweep in report.sweeps for row in sweep]
    return rows


def _row_json(row: ComparisonRow | ExtensionRow | SweepRow) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, Interval):
        return value.as_json()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _bits(row: ComparisonRow) -> str:
    """Say at which payload the printed figure comes out."""
    if row.bits_per_token is None:
        return ""
    if math.isinf(row.bits_per_token):
        return "; no payload gives the printed figure"
    return f"; the printed figure at {row.bits_per_token / 1e3:.0f} kbit per token"


def _interval(interval: Interval) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _options(changes: Mapping[str, Value]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in changes.items()) or "-"


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
