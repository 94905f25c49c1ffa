"""The command `uara plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.plan import PlanTask, load_plan_task, run_plan
from uara.control.plan.planner import Plan
from uara.control.plan.replay import replay
from uara.control.plan.tasks import draw_tasks

if TYPE_CHECKING:
    from experiments.plan_execution import Execution


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
    execute: Annotated[
        bool, typer.Option("--execute", help="run the plan with a real pair of models as well")
    ] = False,
    draft: Annotated[
        str | None, typer.Option(help="folder of the draft model, or hub:OWNER/NAME@COMMIT")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="folder of the target model, or hub:OWNER/NAME@COMMIT")
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
    from uara.figures.gantt import draw_execution, draw_gantt

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
    facts = report_rows(report, seen)
    execution = _execute(task, report.plan, draft, target) if execute else None
    if execution is not None:
        from experiments.plan_execution import execution_rows, execution_table

        console.print(execution_table(report.plan, execution))
        console.print(execution.sentence())
        facts.append({"kind": "execution"} | execution_rows(execution))
    if gantt is not None:
        if execution is None:
            draw_gantt(report.plan, seen, gantt, limit_bytes=task.hetedge.memory_bytes)
        else:
            draw_execution(report.plan, seen, execution.run.spans, gantt)
        console.print(f"gantt: {gantt}")
    save_json(json_file, "plan", task.model_dump(mode="json"), facts)


def _execute(task: PlanTask, plan: Plan, draft: str | None, target: str | None) -> Execution:
    """Run a plan with a pair of models, the shipped one unless another is given."""
    from experiments.cli import Bar
    from experiments.comparison import open_pair
    from experiments.plan_execution import execute_plan
    from uara.decoding.models import SHIPPED_PAIR_FOLDER, load_prompts

    config = task.hetedge
    with Bar("answer tokens") as bar:
        return execute_plan(
            plan,
            config,
            draw_tasks(config, 1),
            task.execute,
            open_pair(draft, target),
            load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl"),
            progress=bar,
        )
