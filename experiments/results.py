"""The README's tables: experiments over seeds beside every rule, on evaluation worlds.

Written to docs/results/: one CSV per table with config, bank and commit hashes, and a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.cards import ship_policy
from experiments.comparison import REFERENCE, play_all
from experiments.config import PROJECT, load_experiment
from experiments.evaluation import METRICS, EpisodeRows, difference, evaluation_row, load_bank
from experiments.request_metrics import DETAILS
from experiments.runs import RUNS, file_hash, git_commit, run_folder
from experiments.sweep import load_rows, sweep
from experiments.tables import evaluation_table, write_csv
from uara.figures.results import draw_latency_bars

FOLDER = PROJECT / "docs" / "results"
CONFIGS = PROJECT / "experiments"
SIMPLE = ("random", "max_sinr", "max_compute", "least_loaded")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TableSpec:
    """A table: the policies that stand beside the rules."""

    name: str
    experiments: tuple[str, ...]


TABLES = (
    TableSpec("association", ("quickstart", "quickstart-sb3")),
    TableSpec("all-heads", ("quickstart-all-heads", "quickstart-sb3")),
)


def pool_seeds(rows: Sequence[EpisodeRows], name: str) -> EpisodeRows:
    """Put the episodes of several training seeds into one row."""
    return EpisodeRows(
        controller=name,
        observes=rows[0].observes,
        world=np.concatenate([row.world for row in rows]),
        metrics={
            m: np.concatenate([row.metrics[m] for row in rows])
            for m in (*METRICS, *DETAILS)
            if all(m in row.metrics for row in rows)
        },
        decide_s=float(np.mean([row.decide_s for row in rows])),
        capped=any(row.capped for row in rows),
        seed=np.repeat(np.arange(len(rows)), [len(row.world) for row in rows]),
    )


def repeat(rows: EpisodeRows, times: int) -> EpisodeRows:
    """Repeat a rule's episodes so that they pair with those of several seeds."""
    return pool_seeds([rows] * times, rows.controller)


def gap_closed(policy: EpisodeRows, rules: dict[str, EpisodeRows]) -> float:
    """Compute which share of the way from the best simple rule to greedy a policy goes."""
    latency = {name: rows.interval("e2e_latency_s").mean for name, rows in rules.items()}
    best = min(latency[name] for name in SIMPLE)
    return (best - policy.interval("e2e_latency_s").mean) / (best - latency[REFERENCE])


def make_rows(
    rules: dict[str, EpisodeRows], policies: dict[str, list[EpisodeRows]]
) -> list[dict[str, Any]]:
    """Make the rows of a table, best first, each with its paired differences."""
    seeds = len(next(iter(policies.values())))
    paired = {name: repeat(rows, seeds) for name, rows in rules.items()}
    table: list[dict[str, Any]] = []
    for name, rows in rules.items():
        table.append({**evaluation_row(rows, rules[REFERENCE]), "kind": "rule"})
        assert table[-1]["controller"] == name
    for name, runs in policies.items():
        pooled = pool_seeds(runs, name)
        row = {**evaluation_row(pooled, paired[REFERENCE]), "kind": "policy"}
        row |= {"seeds": len(runs), "gap_closed": gap_closed(pooled, rules)}
        for rule in SIMPLE:
            apart = difference(pooled, paired[rule])
            row[f"e2e_minus_{rule}_s"] = apart.as_json()
        table.append(row)
    return sorted(table, key=lambda row: float(row["e2e_latency_s"]["mean"]))


def make_results(
    *,
    seeds: int,
    workers: int,
    progress: Progress | None = None,
    root: Path = RUNS,
    folder: Path = FOLDER,
) -> list[Table]:
    """Train, evaluate, ship the seed-0 policies, write every table; what is done stays done.

    Args:
        seeds: training seeds 0 .. N-1.
        workers: processes, one thread each.
        progress: called with runs done and in all.
        root: folder of runs.
        folder: where CSVs and pictures go.
    """
    names = list(dict.fromkeys(name for spec in TABLES for name in spec.experiments))
    finished: list[Path] = []

    def done(path: Path) -> None:
        finished.append(path)
        if progress is not None:
            progress(len(finished), len(names) * seeds)

    files = sweep(
        [CONFIGS / f"{name}.yaml" for name in names],
        range(seeds),
        workers=workers,
        root=root,
        done=done,
    )
    runs = {
        name: [load_rows(path) for path in files[k * seeds : (k + 1) * seeds]]
        for k, name in enumerate(names)
    }
    config = load_experiment(CONFIGS / f"{names[0]}.yaml")
    bank = load_bank(config.task)
    rules = {
        rows.controller: rows
        for rows in play_all(config.task, bank, config.task.evaluation.controllers, [])
    }
    for name in names:
        first = load_experiment(CONFIGS / f"{name}.yaml", ["seed=0"])
        if first.learner.kind == "mappo":
            ship_policy(first, run_folder(first, root), runs[name][0])
    facts = {
        "config_hash": config.task.config_hash(),
        "bank_hash": config.task.bank.config_hash(),
        "acceptance_hash": file_hash(config.task.acceptance_path),
        "commit": git_commit(),
    }
    tables = []
    for spec in TABLES:
        rows = make_rows(rules, {_label(name): runs[name] for name in spec.experiments})
        write_csv(folder / f"{spec.name}.csv", rows, **facts)
        draw_latency_bars(rows, folder / f"{spec.name}.png")
        tables.append(evaluation_table(rows, f"{spec.name}, {seeds} training seeds"))
    return tables


def _label(experiment: str) -> str:
    """Name the row of an experiment."""
    return {
        "quickstart": "mappo",
        "quickstart-all-heads": "mappo_all_heads",
        "quickstart-sb3": "sb3_ppo",
    }[experiment]
