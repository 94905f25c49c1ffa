"""`uara scores`: the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def scores(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="frozen tasks; all by default")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="training seeds 0 .. N-1; 0 plays rules alone")
    ] = 1,
    learner: Annotated[
        list[str] | None, typer.Option(help="learners, e.g. mappo; all by default; repeatable")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes, one thread each")] = 1,
    render: Annotated[
        bool, typer.Option("--render", help="only write docs/results.md from what is stored")
    ] = False,
) -> None:
    """Make the rows of the tables of scores that are missing, then render them; resumable."""
    from experiments.cli import Bar, console
    from experiments.score_tables import PAGE, write_page
    from experiments.scores import contenders, make_rows
    from experiments.task_cards import frozen_tasks

    tasks = list(names or frozen_tasks())
    if not render:
        finished: list[Path] = []
        total = sum(len(contenders(task, seeds, learner)) for task in tasks)
        with Bar("rows") as bar:
            bar(0, total)

            def done(path: Path) -> None:
                finished.append(path)
                bar(len(finished), total)

            make_rows(tasks, seeds=seeds, learners=learner, workers=workers, done=done)
    write_page()
    console.print(f"tables: {PAGE.relative_to(PAGE.parents[1])}")
