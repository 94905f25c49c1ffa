"""The command `uara report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of runs, or of experiments with a run per seed")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("runs/report.html"),
    decoded: Annotated[
        list[Path] | None,
        typer.Option(help="folder of records of real runs (uara decode --records); repeatable"),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="frozen episodes per controller; default: the task's, and stored rows are used",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write what the page was made of to this file")
    ] = None,
) -> None:
    """Write one HTML page of runs: curves, scores, distributions, maps, timelines, configs."""
    from experiments.cli import Bar, console, save_json
    from experiments.report.build import build_report

    with Bar("controllers") as bar:
        path = build_report(runs, out, decoded=decoded or [], episodes=episodes, progress=bar)
    console.print(f"report: {path}")
    save_json(json_file, "report", {"runs": [str(run) for run in runs]}, [{"page": str(path)}])
