"""What each part of a decision is worth alone: one part changed at a time from a plain start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.table import Table

from experiments.comparison import Progress, Row, rule_controller
from experiments.config import TaskConfig
from experiments.evaluation import EpisodeRows, evaluate_controller, evaluation_row, load_bank
from experiments.tables import show_interval

# Strongest server, equal bands, full power, drafts of four tokens, sequential drafting.
START = {
    "association": "max_gain",
    "bandwidth": "equal",
    "power": "full",
    "draft length": "4",
    "mode": "sd",
}
CHOICES = {
    "association": (
        "random", "max_compute", "least_loaded", "max_rate_share", "hungarian", "greedy_latency",
        "tma_moves", "completion_greedy",
    ),
    "bandwidth": ("demand", "square_root", "least_sum", "goodput", "equal_finish"),
    "power": ("open_loop", "min_energy_deadline"),
    "draft length": ("2", "8", "argmin", "log_threshold", "ucb"),
    "mode": ("server_ar", "psd", "async", "best_mode"),
}  # fmt: skip
TOGETHER = (
    "greedy_latency+square_root+full+argmin+sd",
    "completion_greedy+square_root+full+argmin+sd",
    "tma_moves+square_root+full+argmin+sd",
    "greedy_latency+square_root+full+argmin+best_mode",
)


def combinations() -> dict[str, tuple[str, str]]:
    """List the controllers by name, with the part that differs and its rule."""
    found = {"+".join(START.values()): ("start", "+".join(START.values()))}
    for part, rules in CHOICES.items():
        for rule in rules:
            found["+".join((START | {part: rule}).values())] = (part, rule)
    return found | {name: ("together", name) for name in TOGETHER}


def play_by_part(task: TaskConfig, jobs: int, progress: Progress | None = None) -> list[Row]:
    """Play every combination on the frozen episodes, each paired with the plain start.

    Args:
        task: whose evaluation episodes are played.
        jobs: processes, each with one thread.
        progress: told how many combinations are done.
    """
    names = combinations()
    load_bank(task)
    played = {}
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        for name, rows in zip(names, pool.map(_play, names, [task] * len(names)), strict=True):
            played[name] = rows
            if progress is not None:
                progress(len(played), len(names))
    start = played["+".join(START.values())]
    return [
        {"part": part, "rule": rule} | evaluation_row(played[name], start)
        for name, (part, rule) in names.items()
    ]


def _play(name: str, task: TaskConfig) -> EpisodeRows:
    torch.set_num_threads(1)
    return evaluate_controller(rule_controller(name, task), task, load_bank(task))


def by_part_table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Show each part's rules: E2E, paired difference to the start, TTFT, TPOT, joules."""
    table = Table(title=f"{title}: one part changed at a time, mean [95 % interval]")
    table.add_column("part")
    table.add_column("rule", overflow="fold")
    for name in ("E2E (s)", "minus start (s)", "per cent", "TTFT (s)", "TPOT (ms)", "J/req"):
        table.add_column(name, justify="right")
    for row in rows:
        e2e, paired = row["e2e_latency_s"], row["e2e_minus_reference_s"]
        table.add_row(
            row["part"],
            row["rule"],
            f"{e2e['mean']:.2f}",
            show_interval(paired, sign="+"),
            f"{100 * paired['mean'] / (e2e['mean'] - paired['mean']):+.1f}",
            f"{row['ttft_s']['mean']:.2f}",
            f"{1e3 * row['tpot_s']['mean']:.0f}",
            f"{row['device_energy_j']['mean']:.1f}",
        )
    return table
