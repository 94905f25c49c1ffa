"""`uara tasks`: the command."""

from __future__ import annotations

from typing import Annotated

import typer


def tasks(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="frozen tasks; all by default")
    ] = None,
    episodes: Annotated[int, typer.Option(min=8, help="episodes per figure")] = 32,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="serving modes beside server_ar and the task's own; repeatable"),
    ] = None,
) -> None:
    """Diagnose frozen tasks that are not yet, and write their cards to docs/tasks.md."""
    from experiments.cli import Bar, console
    from experiments.task_cards import FOLDER, PAGE, diagnose_tasks, frozen_tasks, write_page

    for name in names or frozen_tasks():
        with Bar(name) as bar:
            (path,) = diagnose_tasks(
                [name], episodes=episodes, modes=mode or ["device_only"], progress=bar
            )
        console.print(f"{path.relative_to(FOLDER.parents[2])}")
        write_page()
    console.print(f"cards: {PAGE.relative_to(FOLDER.parents[2])}")
