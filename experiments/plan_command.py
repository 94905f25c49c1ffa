"""The command `uara plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.plan import load_plan_task, run_plan
from uara.control.plan.replay import replay


def plan(
    file: Annotated[
        Path,
        typer.Argument(help="file with a `hetedge` group, e.g. experiments/papers/hetedge.yaml"),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the file")
    ] = None,
    drops: Annotated[
        int | None, typer.Option(min=2, help="drops of users per figure; as drops=N")
    ] = None,
    gantt: Annotated[
        Path | None, typer.Option(help="draw the plan's first rounds and its memory (PNG)")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the result to this file")
    ] = None,
) -> None:
    """Plan uploads, batches and draft lengths for two edge nodes, beside arXiv 2510.11331."""
    from experiments.cli import Bar, console, save_json
    from experiments.plan_tables import (
        comparison_table,
        extension_table,
        plan_table,
        report_rows,
        sweep_table,
    )
    from uara.figures.gantt import draw_gantt

    asked = [f"drops={drops}"] if drops is not None else []
    task = load_plan_task(file, [*(overrides or []), *asked])
    with Bar("points") as bar:
        report = run_plan(task, progress=bar)
    seen = replay(report.plan, task.hetedge)
    console.print(plan_table(report.plan, seen, task.hetedge))
    if report.comparisons:
        console.print(comparison_table(report.comparisons, task.drops))
    if report.extensions:
        console.print(extension_table(report.extensions))
    for sweep, rows in zip(task.sweeps, report.sweeps, strict=True):
        console.print(sweep_table(rows, sweep.changes))
    if gantt is not None:
        draw_gantt(report.plan, seen, gantt, limit_bytes=task.hetedge.memory_bytes)
        console.print(f"gantt: {gantt}")
    save_json(json_file, "plan", task.model_dump(mode="json"), report_rows(report, seen))
