"""Tables for the terminal, and the CSV that the README's tables are held against."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.decode import DecodeRow
from experiments.diagnose import Diagnosis, Finding
from experiments.runs import write_text


def diagnosis_table(findings: Sequence[Finding]) -> Table:
    """Show the diagnosis: figure, rule, verdict."""
    table = Table(title="is this scenario worth learning?")
    table.add_column("figure")
    table.add_column("per cent", justify="right")
    table.add_column("asked for")
    table.add_column("holds")
    for finding in findings:
        holds = "yes" if finding.holds else "NO"
        table.add_row(finding.name, f"{finding.percent:+.1f}", finding.rule, holds)
    return table


def mode_table(diagnosis: Diagnosis) -> Table:
    """Show what each serving mode brings under greedy_latency."""
    table = Table(title="greedy_latency in each serving mode")
    table.add_column("mode")
    for name in ("E2E (s)", "TTFT (s)", "TPOT (ms)"):
        table.add_column(name, justify="right")
    table.add_column("lossless")
    for row in diagnosis.modes:
        lossless = "yes" if row.is_lossless else "NO"
        figures = (f"{row.e2e_s:.2f}", f"{row.ttft_s:.2f}", f"{1e3 * row.tpot_s:.0f}")
        table.add_row(row.mode, *figures, lossless)
    return table


def time_table(diagnosis: Diagnosis) -> Table:
    """Show where the time of requests goes, and how much of each uplink band is in use."""
    use = diagnosis.time_use
    table = Table(title="where requests spend their time under greedy_latency, per cent")
    for part in use.share:
        table.add_column(part, justify="right")
    table.add_row(*(f"{100 * share:.1f}" for share in use.share.values()))
    bands = ", ".join(f"{100 * load:.0f} %" for load in use.band_load.mean(0))
    table.caption = f"uplink bands in use: {bands}"
    return table


def fit_table(fits: Mapping[str, Mapping[str, float]]) -> Table:
    """Show how long forward passes take on a machine, and how far the law is from the clock."""
    table = Table(title="time of a forward pass on this machine")
    table.add_column("model")
    names = ("fixed_s", "per_row_s", "per_token_s", "per_context_s", "residual_s")
    for name in names:
        table.add_column(f"{name.removesuffix('_s')} (us)", justify="right")
    table.add_column("residual (%)", justify="right")
    for model, fit in fits.items():
        figures = (f"{1e6 * fit[name]:.2f}" for name in names)
        table.add_row(model, *figures, f"{100 * fit['relative_residual']:.1f}")
    return table


def branch_table(found: Mapping[str, Any]) -> Table:
    """Show how often the token after a rejection is guessed, per rule and task."""
    table = Table(title=f"corrections guessed, temperature {found['temperature']}")
    for name in ("rule", "task"):
        table.add_column(name)
    for count in found["guesses"]:
        table.add_column(f"m = {count}", justify="right")
    table.add_column("m = 3, by token of a block")
    for rule, tasks in found["hit_rates"].items():
        for task, rates in tasks.items():
            placed = " ".join(f"{rate:.2f}" for rate in rates["by_position"])
            table.add_row(rule, task, *(f"{rate:.3f}" for rate in rates["by_guesses"]), placed)
    phones = "; ".join(
        f"{name} {share['shared_prefix']:.4f}, own prefixes {share['own_prefix']:.4f}"
        for name, share in found["phones"].items()
    )
    table.caption = (
        f"a branch adds to a draft step: {found['this_machine']['share']:.3f} on this machine; by "
        f"roofline {phones}"
    )
    return table


def evaluation_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Show evaluation rows: E2E with its interval, paired difference, the other means."""
    table = Table(title=f"{title}: frozen episodes, mean [95 % interval]")
    table.add_column("controller", overflow="fold")
    table.add_column("observes")
    for name in ("E2E (s)", "minus greedy (s)", "TTFT (s)", "TPOT (ms)", "J/req", "kbit/token",
                 "moves/req", "us/decision"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        e2e, paired = row["e2e_latency_s"], row.get("e2e_minus_reference_s")
        table.add_row(
            row["controller"],
            row["observes"],
            show_interval(e2e),
            show_interval(paired, sign="+") if paired else "-",
            f"{row['ttft_s']['mean']:.2f}",
            f"{1e3 * row['tpot_s']['mean']:.0f}",
            f"{row['device_energy_j']['mean']:.1f}",
            f"{row['uplink_kbit_per_token']['mean']:.1f}",
            f"{row['handovers']['mean']:.2f}",
            f"{row['decide_us']:.0f}",
        )
    return table


def decode_table(rows: Sequence[DecodeRow], title: str) -> Table:
    """Show the real runs: latency, acceptance, waste, bytes, idle shares, and the prediction."""
    table = Table(title=f"{title}: real draft/verify runs under the virtual clock")
    table.add_column("controller", overflow="fold")
    for name in ("E2E (s)", "p95", "TTFT (s)", "KV wait (s)", "TPOT (ms)", "tau", "alpha",
                 "by position", "rejected / behind / late", "up B/token", "down B/token",
                 "idle device / server", "TPOT / predicted", "alpha per task"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        s = row.result.summary()
        table.add_row(
            row.controller,
            f"{s['e2e_s']:.2f}",
            f"{s['e2e_p95_s']:.2f}",
            f"{s['ttft_s']:.2f}",
            f"{s['memory_wait_s']:.2f}",
            f"{1e3 * s['tpot_s']:.0f}",
            f"{s['tokens_per_verification']:.2f}",
            f"{s['acceptance']:.3f}",
            " ".join(f"{rate:.2f}" for rate in row.result.acceptance_by_position()),
            " / ".join(
                f"{s[f'{cause}_tokens'] / max(s['drafted_tokens'], 1):.0%}"
                for cause in ("rejected", "rolled_back", "late")
            ),
            f"{s['uplink_bytes_per_token']:.0f}",
            f"{s['downlink_bytes_per_token']:.0f}",
            f"{s['device_idle']:.0%} / {s['server_idle']:.0%}",
            f"{row.measured_tpot_s / row.predicted_tpot_s:.3f}",
            " ".join(f"{task} {rate:.2f}" for task, rate in row.acceptance_by_task.items()),
        )
    return table


def show_interval(cell: Mapping[str, Any], sign: str = "") -> str:
    """Write a mean with its 95 % interval."""
    low, high = cell["ci95"]
    return f"{cell['mean']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], **facts: object) -> None:
    """Write evaluation rows to a CSV, whole or not at all.

    Args:
        path: file to write.
        rows: evaluation rows.
        facts: columns that are the same in every row, e.g. hashes.
    """
    flat = [_flat(row) | facts for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path, text.getvalue())


def _flat(row: Mapping[str, Any]) -> dict[str, object]:
    """Spread intervals over three columns."""
    flat: dict[str, object] = {}
    for name, cell in row.items():
        if isinstance(cell, Mapping):
            low, high = cell["ci95"]
            flat |= {name: _short(cell["mean"]), f"{name}_low": _short(low)}
            flat |= {f"{name}_high": _short(high)}
        else:
            flat[name] = _short(cell) if isinstance(cell, float) else cell
    return flat


def _short(value: float) -> str:
    """Round to six significant digits, so that a table is the same wherever it is made."""
    return f"{value:.6g}" if math.isfinite(value) else ""
