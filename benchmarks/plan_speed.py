"""How long plans take and how that grows with the tasks: `python -m benchmarks.plan_speed`."""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import time
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import choose
from uara.control.plan.tasks import draw_tasks

TASKS = (25, 50, 100, 200)
PLANNERS: dict[str, dict[str, object]] = {
    "prefixes, 16 rounds": {"search": "prefix"},
    "prefixes, every round": {"search": "prefix", "round_samples": 10**6},
    "and the front": {"search": "both"},
    "a length per batch": {"search": "both", "draft_length_per_batch": True},
    "memory in flight": {"search": "prefix", "memory_rule": "in_flight"},
}


def planning_s(config: HetEdgeConfig, repeats: int) -> float:
    """Time a plan of one drop, all draft lengths, in processor seconds: the least of some."""
    tasks = draw_tasks(config, 1)
    times = []
    for _ in range(repeats):
        start_s = time.process_time()
        choose(config, tasks)
        times.append(time.process_time() - start_s)
    return min(times)


def main(
    repeats: Annotated[int, typer.Option(min=1, help="plans per figure; the fastest counts")] = 3,
    draft: Annotated[str, typer.Option(help="draft model, 68m or 1.1b")] = "1.1b",
) -> None:
    """Time every planner on one thread, draft lengths 1 to 10."""
    table = Table(title=f"seconds per plan, {draft} draft", box=box.SIMPLE_HEAD)
    table.add_column("tasks", justify="right")
    for name in PLANNERS:
        table.add_column(name, justify="right")
    for users in TASKS:
        configs = (
            HetEdgeConfig.model_validate({"users": users, "draft": draft, **given})
            for given in PLANNERS.values()
        )
        table.add_row(str(users), *(f"{planning_s(config, repeats):.3f}" for config in configs))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
