"""The prediction beside the event judge: `python -m benchmarks.judge`.

The judge (`tests/reference/event_judge.py`) simulates every draft token, frame and pass and imports
nothing of the project; the prediction is one evaluation of formulas.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.judge_cases import SATURATED, Case, Comparison, compare
from uara.figures.agreement import draw_agreement
from uara.serving.payload import CODEC_NAMES

LONE_BOUND = 0.03
MEDIAN_BOUND, P90_BOUND = 0.04, 0.08
RACKS = ("4xA100-40GB", "4xRTX6000Ada", "4xRTXA6000")
RTTS_S = (0.0, 0.01, 0.05, 0.1)
LONE_REQUESTS, SHARED_REQUESTS = 60, 4
LONE_MODES = (("sd", 1), ("server_ar", 1), ("psd", 1), ("async", 1), ("async", 2))
SHARED_MODES = (*LONE_MODES, ("mixed", 2))
# Mode `async` with drafts that a budget of drafting time cuts: window, budget.
CUT: tuple[tuple[int, float | Literal["verdict"]], ...] = ((1, "verdict"), (2, "verdict"), (1, 0.1))
# devices, servers, foreign rows, factor on the time per token
LOADS = (
    (2, 1, 0.0, 1.0),
    (4, 1, 0.0, 4.0),
    (6, 2, 20.0, 1.0),
    (8, 1, 0.0, 10.0),
    (10, 1, 30.0, 4.0),
    (15, 3, 0.0, 1.0),
    (30, 3, 0.0, 4.0),
    (30, 3, 0.0, 10.0),
    (30, 1, 0.0, 10.0),
    (24, 2, 0.0, 25.0),
)
SATURATING = (30, 1, 0.0, 40.0)


def lone_cases(seed: int = 0) -> list[Case]:
    """List devices that have a resting server for themselves: modes by codecs."""
    return [
        Case(
            mode,
            codec,
            1,
            (RACKS[turn % 3],),
            RTTS_S[(turn + place) % 4],
            window,
            seed=1000 * seed + 4 * turn + place,
        )
        for turn, (mode, window) in enumerate(LONE_MODES)
        for place, codec in enumerate(CODEC_NAMES)
    ]


def shared_cases(seed: int = 0) -> list[Case]:
    """List networks with batched servers: modes by loads."""
    cases = []
    for turn, (mode, window) in enumerate(SHARED_MODES):
        for place, (devices, servers, foreign, work) in enumerate((*LOADS, SATURATING)):
            number = turn + place
            codec, rtt_s = CODEC_NAMES[number % 4], RTTS_S[number // 4 % 4]
            cases.append(
                Case(
                    mode,
                    codec,
                    devices,
                    RACKS[:servers],
                    rtt_s,
                    window,
                    foreign,
                    work,
                    seed=1000 * seed + 100 + number,
                )
            )
    return cases


def cut_cases(cases: Sequence[Case]) -> list[Case]:
    """List the cases of `async` with drafts that are cut, on networks of their own."""
    return [
        replace(case, draft_budget=budget, seed=case.seed + 500)
        for window, budget in CUT
        for case in cases
        if (case.mode, case.window) == ("async", window)
    ]


@dataclass(frozen=True)
class Summary:
    """Errors of the mean time per token of one kind of case, relative to the judge."""

    kind: str  # lone, shared or saturated
    mode: str
    settings: int
    servers: int
    median: float
    p90: float
    worst: float
    device_p90: float


def kind_of(row: Comparison) -> str:
    """Tell which bound a row is held to."""
    if row.is_saturated:
        return "saturated"
    return "lone" if row.case.devices == 1 and row.case.foreign_rows == 0 else "shared"


def summarise(rows: Sequence[Comparison]) -> list[Summary]:
    """Summarise rows by kind and mode, and over all modes."""
    result = []
    for kind in ("lone", "shared", "saturated"):
        mine = [row for row in rows if kind_of(row) == kind]
        names = [*dict.fromkeys(row.case.name for row in mine), *(["all"] if mine else [])]
        for name in names:
            chosen = [row for row in mine if name in ("all", row.case.name)]
            errors = np.abs([row.error for row in chosen])
            devices = np.abs([error for row in chosen for error in row.device_errors])
            result.append(
                Summary(
                    kind=kind,
                    mode=name,
                    settings=len({row.case for row in chosen}),
                    servers=len(chosen),
                    median=float(np.median(errors)),
                    p90=float(np.quantile(errors, 0.9)),
                    worst=float(errors.max()),
                    device_p90=float(np.quantile(devices, 0.9)),
                )
            )
    return result


def misses(summaries: Sequence[Summary]) -> list[str]:
    """Say which bounds are missed."""
    found = []
    for row in summaries:
        if row.mode != "all" or row.kind == "saturated":
            continue
        if row.kind == "lone":
            bounds = [("worst", row.worst, LONE_BOUND)]
        else:
            bounds = [("median", row.median, MEDIAN_BOUND), ("p90", row.p90, P90_BOUND)]
        found += [
            f"{row.kind}: {what} {value:.1%} is above {bound:.0%}"
            for what, value, bound in bounds
            if value > bound
        ]
    return found


def show(rows: Sequence[Comparison], summaries: Sequence[Summary], console: Console) -> None:
    """Print the summary, and the settings that are saturated."""
    table = Table(title="Error of the time per token against the event judge", box=box.SIMPLE_HEAD)
    table.add_column("kind")
    table.add_column("mode")
    for name in ("settings", "servers", "median", "p90", "worst", "devices p90"):
        table.add_column(name, justify="right")
    for row in summaries:
        errors = (row.median, row.p90, row.worst, row.device_p90)
        table.add_row(
            row.kind,
            row.mode,
            str(row.settings),
            str(row.servers),
            *(f"{error:.1%}" for error in errors),
        )
    console.print(table)
    for comparison in rows:
        if comparison.is_saturated:
            case = comparison.case
            console.print(
                f"saturated: {case.name}, {case.codec}, {case.devices} devices, offered load "
                f"{comparison.offered_load:.2f}, error {comparison.error:+.1%}"
            )


def write_json(rows: Sequence[Comparison], summaries: Sequence[Summary], path: Path) -> None:
    """Write rows and summaries, whole or not at all."""
    content: dict[str, Any] = {
        "bounds": {"lone": LONE_BOUND, "median": MEDIAN_BOUND, "p90": P90_BOUND, "load": SATURATED},
        "summaries": [asdict(row) for row in summaries],
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write rows and summaries to this file")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="draw predicted over judged times")] = None,
    seed: Annotated[int, typer.Option(min=0, help="draws other devices")] = 0,
) -> None:
    """Hold the prediction to the event judge on one and on many devices."""
    torch.set_num_threads(1)
    console = Console()
    rows: list[Comparison] = []
    for case in (*lone_cases(seed), *cut_cases(lone_cases(seed + 1))):
        rows += compare(case, requests_per_device=LONE_REQUESTS)
    for case in (*shared_cases(seed), *cut_cases(shared_cases(seed + 1))):
        rows += compare(case, requests_per_device=SHARED_REQUESTS)
    summaries = summarise(rows)
    show(rows, summaries, console)
    for miss in misses(summaries):
        console.print(f"missed: {miss}")
    if json_file is not None:
        write_json(rows, summaries, json_file)
    if figure is not None:
        draw_agreement(
            [row.case.name for row in rows],
            np.array([row.predicted_s for row in rows]),
            np.array([row.judged_s for row in rows]),
            np.array([row.offered_load for row in rows]),
            figure,
        )


if __name__ == "__main__":
    typer.run(main)
