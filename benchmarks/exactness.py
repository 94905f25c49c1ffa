"""Joint law of drafted and verified tokens, every rule and codec: `python -m benchmarks.exactness`.

A table of chi-square tests against the exact law; with `--mutants`, of known defects beside it.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.exactness_mutants import MUTANTS
from benchmarks.exactness_trials import CASES, Fit, Tables, Trial, fit, sample


def case_fit(name: str, tables: Tables, draws: int, seed: int) -> Fit:
    """Sample one case."""
    trial = Trial(CASES[name], tables)
    return fit(sample(trial, draws, seed=seed), trial.target_law())


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("rule / codec" if "known" not in title else "defect")
    for name in ("chi-square", "p", "TV"):
        table.add_column(name, justify="right")
    return table


def _add(table: Table, name: str, found: Fit) -> None:
    table.add_row(
        name, f"{found.chi_square:.1f}", f"{found.p_value:.3g}", f"{found.total_variation:.4f}"
    )


def main(
    draws: Annotated[int, typer.Option(min=1000, help="sequences of three tokens")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="of draws")] = 0,
    mutants: Annotated[bool, typer.Option(help="known defects as well")] = False,
    only: Annotated[str, typer.Option(help="cases whose name begins so")] = "",
) -> None:
    """Sample the first three tokens of every rule and codec, and test their joint law."""
    tables, console = Tables.draw(), Console()
    names = [name for name in CASES if name.startswith(only)]
    table = _table(f"{draws:,} draws of three tokens against the target's joint law")
    for name in track(names, console=console, transient=True):
        _add(table, name, case_fit(name, tables, draws, seed))
    console.print(table)
    if mutants:
        table = _table(f"{draws:,} draws of known defects: each p must be 0")
        for name, mutant in track(MUTANTS.items(), console=console, transient=True):
            _add(table, name, mutant.fit(tables, draws))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
