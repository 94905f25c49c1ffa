"""Where a step's time goes, and how time and memory grow: `python -m benchmarks.env_stages`.

Stages are timed one inside the other, in seconds of the processor, on one thread; what a stage
spends in another stage counts there. Memory is the peak of a process of its own per size.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import functools
import multiprocessing
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import envs.batched
import uara.world.world
from benchmarks.env_speed import THREADS, make_recipe, random_action
from envs.native_decision import NativeDecider
from envs.native_observation import NativeObserver
from experiments.runs import write_json
from uara.figures.growth import draw_growth
from uara.native import compiler
from uara.world.world import World

SIZES = ((8, 3), (30, 4), (30, 13), (60, 8), (120, 13), (180, 20))
PAIRS = 120_000  # of all networks together, so that sizes are compared at like batches
STEPS = 120

# Stage, holder of the function, its name. A stage inside another is taken off the outer one.
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("decide", envs.batched, "to_decision"),
    ("decide", NativeDecider, "__call__"),
    ("slot", World, "step"),
    ("predict", uara.world.world, "predict"),
    ("state", World, "state"),
    ("observe", envs.batched, "observe"),
    ("observe", NativeObserver, "__call__"),
    ("reset", World, "reset"),
)
NAMES = tuple(dict.fromkeys(stage for stage, _, _ in STAGES))


@dataclass(frozen=True)
class Row:
    """One size, with compiled code or with torch."""

    devices: int
    servers: int
    batch: int
    native: bool
    env_steps_per_s: float
    peak_mib: float
    share: dict[str, float]  # of a step's time per stage; the rest is "other"


class _Clock:
    """Adds up the time of each stage without that of the stages inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def watch(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that belongs to a stage."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._inner.append(0.0)
            result = function(*args, **kwargs)
            whole = time.process_time() - start
            self.spent[stage] += whole - self._inner.pop()
            self._inner[-1] += whole
            return result

        return timed


def measure(devices: int, servers: int, native: bool) -> Row:
    """Time one size; to be called in a fresh process, whose memory it reads."""
    torch.set_num_threads(THREADS)
    clock = _Clock()
    for stage, holder, name in STAGES:
        setattr(holder, name, clock.watch(stage, getattr(holder, name)))
    batch = max(1, PAIRS // (devices * servers))
    env = make_recipe(devices, servers, native=native).batched(batch, seed=0)
    generator = torch.Generator().manual_seed(1)
    env.reset()
    for _ in range(5):
        env.step(random_action(env, generator))
    clock.spent.clear()
    start = time.process_time()
    for _ in range(STEPS):
        env.step(random_action(env, generator))
    whole = time.process_time() - start
    share = {name: clock.spent[name] / whole for name in NAMES}
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = STEPS * batch / whole
    rest = {"other": 1 - sum(share.values())}
    return Row(devices, servers, batch, native, speed, peak_mib, share | rest)


def show(rows: list[Row], native: bool, console: Console) -> None:
    """Print the table of compiled code or of torch."""
    code = "native" if native else "torch"
    table = Table(
        title=f"Where a step's time goes, per cent; {code}, {THREADS} thread",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in ("M x E", "batch", "steps/s", "MiB", *NAMES, "other"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        if row.native == native:
            table.add_row(
                f"{row.devices} x {row.servers}",
                str(row.batch),
                f"{row.env_steps_per_s:,.0f}",
                f"{row.peak_mib:,.0f}",
                *(f"{100 * part:.0f}" for part in row.share.values()),
            )
    console.print(table)


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the table to this file as well")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the growth into this PNG")] = None,
) -> None:
    """Split the time of a step into stages at six sizes; show how time and memory grow."""
    rows, console = [], Console()
    context = multiprocessing.get_context("spawn")
    for native in (True, False) if compiler() else (False,):
        for devices, servers in SIZES:
            # One process per size: a peak of memory never falls again.
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(measure, devices, servers, native).result())
        show(rows, native, console)
    if json_file is not None:
        write_json(json_file, {"rows": [asdict(row) for row in rows]})
    if figure is not None:
        draw_growth(
            {
                name: [
                    (row.devices * row.servers, 1e6 / row.env_steps_per_s, row.peak_mib)
                    for row in rows
                    if row.native == native
                ]
                for name, native in (("native", True), ("torch", False))
            },
            figure,
        )


if __name__ == "__main__":
    typer.run(main)
