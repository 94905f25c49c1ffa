"""`uara tune`: the command, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from experiments.tuning import Trial, Tuning, TuningConfig
from experiments.tuning import tune as run


def tune(
    config: Annotated[Path, typer.Argument(help="config file (YAML)")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the config")
    ] = None,
    controller: Annotated[
        str, typer.Option(help="whose parameters are tuned")
    ] = "completion_greedy",
    trials: Annotated[int, typer.Option(min=1, help="parameter sets that are tried")] = 24,
    episodes: Annotated[int, typer.Option(min=1, help="episodes of each, in the first round")] = 16,
    fresh: Annotated[int, typer.Option(min=1, help="other episodes that judge the best")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="of the search and of the episodes")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="YAML of the best; default runs/tuning/TASK-CONTROLLER.yaml")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the result to this file")
    ] = None,
) -> None:
    """Tune a controller's parameters on the tuning worlds; a search that was killed goes on."""
    from experiments.cli import Bar, console, save_json
    from experiments.config import load_any
    from experiments.evaluation import evaluation_row, load_bank
    from experiments.runs import RUNS

    task = load_any(config, overrides)
    search = TuningConfig(
        controller=controller, trials=trials, episodes=episodes, fresh_episodes=fresh, seed=seed
    )
    path = out or RUNS / "tuning" / f"{task.name}-{controller}.yaml"
    with Bar("worlds") as bar:
        bank = load_bank(task, progress=bar)
    with Bar("episodes") as bar:
        result = run(task, bank, search, path, progress=bar)
    console.print(trial_table(result.trials, task.name), fresh_table(result))
    console.print(f"parameters: {path}, for `uara evaluate {config} controllers={path} ...`")
    rows: list[object] = [{"kind": "trial", **trial.__dict__} for trial in result.trials]
    rows += [
        {"kind": kind, **evaluation_row(row, result.rows[-1])}
        for kind, row in zip(("tuned", "as in the task", "reference"), result.rows, strict=True)
    ]
    save_json(json_file, "tune", task.model_dump(mode="json"), rows)


def trial_table(trials: list[Trial], task: str) -> Table:
    """Show the trials, the longest played and best first."""
    table = Table(title=f"{task}: trials on the tuning worlds")
    names = list(trials[0].parameters)
    for name in ("trial", "episodes", *names, "E2E (s)"):
        table.add_column(name, justify="right")
    for trial in sorted(trials, key=lambda trial: (-trial.episodes, trial.e2e_s)):
        values = (f"{trial.parameters[name]:g}" for name in names)
        table.add_row(f"{trial.number}", f"{trial.episodes}", *values, f"{trial.e2e_s:.3f}")
    return table


def fresh_table(result: Tuning) -> Table:
    """Show what the best set is worth on episodes that the search has not seen."""
    from experiments.evaluation import difference

    tuned, own, reference = result.rows
    table = Table(title=f"{len(tuned.world)} fresh episodes on the tuning worlds, 95 % intervals")
    for name in ("controller", "E2E (s)", f"minus {reference.controller} (s)", "handovers"):
        table.add_column(name, justify="right" if name != "controller" else "left")
    labels = (f"{tuned.controller}, tuned", f"{own.controller}, as in the task")
    for label, rows in zip((*labels, reference.controller), result.rows, strict=True):
        apart: Any = "" if rows is reference else difference(rows, reference)
        shown = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]" if apart else ""
        table.add_row(
            label,
            f"{rows.interval('e2e_latency_s').mean:.3f}",
            shown,
            f"{rows.interval('handovers').mean:.3f}",
        )
    return table
