"""The tables of scores in docs/results.md, rendered from stored rows alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.config import PROJECT
from experiments.evaluation import difference
from experiments.results import pool_seeds, repeat
from experiments.runs import write_text
from experiments.scores import FAIR, FOLDER, INFORMED, StoredRow, stored_rows
from experiments.task_cards import frozen_tasks

PAGE = PROJECT / "docs" / "results.md"
BLOCK = re.compile(r"(<!-- scores -->\n).*?(<!-- /scores -->)", re.DOTALL)
HEADER = (
    "| row | observes | seeds | E2E (s) | minus fair (s) | per cent | p95 (s) | J/request | "
    "moves | us/decision |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


@dataclass(frozen=True)
class Score:
    """One line of a table; intervals are (mean, low, high)."""

    name: str
    observes: str
    seeds: int
    e2e_s: tuple[float, float, float]
    minus_fair_s: tuple[float, float, float]
    percent: float  # of the fair controller's mean
    p95_s: float
    device_energy_j: float
    handovers: float
    decide_s: float


def scores(stored: Mapping[str, StoredRow]) -> list[Score]:
    """Make the lines of a task's table, best first, each paired with the fair controller."""
    fair = stored[FAIR].runs[0]
    lines = []
    for row in stored.values():
        several = len(row.runs) > 1
        rows = pool_seeds(row.runs, row.name) if several else row.runs[0]
        rival = repeat(fair, len(row.runs)) if several else fair
        e2e, apart = rows.interval("e2e_latency_s"), difference(rows, rival)
        lines.append(
            Score(
                name=row.name,
                observes="the truth" if row.name == INFORMED else rows.observes,
                seeds=len(row.runs) if row.is_learned else 0,
                e2e_s=(e2e.mean, e2e.low, e2e.high),
                minus_fair_s=(apart.mean, apart.low, apart.high),
                percent=100 * apart.mean / fair.interval("e2e_latency_s").mean,
                p95_s=rows.interval("e2e_p95_s").mean,
                device_energy_j=rows.interval("device_energy_j").mean,
                handovers=rows.interval("handovers").mean,
                decide_s=rows.decide_s,
            )
        )
    return sorted(lines, key=lambda line: line.e2e_s[0])


def markdown(task: str, stored: Mapping[str, StoredRow]) -> str:
    """Write the table of a task."""
    episodes = len(stored[FAIR].runs[0].world)
    lines = [f"### {task} ({episodes} episodes)", "", *HEADER]
    for score in scores(stored):
        cells = (
            f"`{score.name}`",
            score.observes,
            str(score.seeds or ""),
            _interval(score.e2e_s, ""),
            "" if score.name == FAIR else _interval(score.minus_fair_s, "+"),
            "" if score.name == FAIR else f"{score.percent:+.1f}",
            f"{score.p95_s:.1f}",
            f"{score.device_energy_j:.1f}",
            f"{score.handovers:.2f}",
            f"{1e6 * score.decide_s:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join((*lines, ""))


def _interval(values: tuple[float, float, float], sign: str) -> str:
    mean, low, high = (f"{value:{sign}.2f}" for value in values)
    return f"{mean} [{low}, {high}]"


def fill_page(text: str, folder: Path = FOLDER) -> str:
    """Put the tables of all tasks with stored rows between the markers of the page."""
    names = [name for name in frozen_tasks() if (folder / name).is_dir()]
    tables = "\n".join(markdown(name, stored_rows(name, folder)) for name in names)
    return BLOCK.sub(lambda block: f"{block[1]}{tables}{block[2]}", text)


def write_page(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write the page anew from the stored rows."""
    write_text(page, fill_page(page.read_text(encoding="utf-8"), folder))
