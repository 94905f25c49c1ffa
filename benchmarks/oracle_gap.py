"""How far one-slot controllers are from the best decision: `python -m benchmarks.oracle_gap`.

States are those of the quickstart's tuning worlds in play, cut to seven phones that all have a
request. The oracle tries all associations with every split of bands and every draft length; where
it cannot, the lower bound stands in. One thread; milliseconds are those of the processor.

Shape legend: B networks.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.control_speed import crowded_state
from benchmarks.env_speed import THREADS
from experiments.config import PROJECT, TaskConfig, load_task
from experiments.evaluation import episode_keys, load_bank, make_world
from experiments.runs import write_json
from uara.control.allocation import AllocationConfig
from uara.control.lower_bound import lower_bound_s
from uara.control.objective import total_remaining_s
from uara.control.oracle import OneSlotOracle
from uara.control.registry import make_controller
from uara.control.server_cost import take_devices
from uara.network import NetworkState
from uara.prediction import Physics

DEVICES = 7
WARM_SLOTS = 30  # until drops differ; a request lasts about 40
NAMES = (
    *("max_gain", "max_rate_share", "hungarian", "greedy_latency", "tma_moves"),
    *("greedy_latency+least_sum", "tma_moves+least_sum", "tma_moves+goodput"),
    *("joint_greedy", "joint_moves"),
)
LARGE = (4, 30, 4)  # networks, devices, servers


@dataclass(frozen=True)
class Gap:
    """A controller beside the oracle and the lower bound, means over drops."""

    name: str
    over_oracle_percent: float
    worst_percent: float
    bound_share: float  # bound over the controller's objective
    decision_ms: float  # all networks together


def drops(task: TaskConfig, count: int) -> NetworkState:
    """Take states of tuning worlds in play: B drops of seven phones, all with a request."""
    arrivals = task.world.requests.model_copy(update={"arrivals_per_s": 1.0})
    world_config = task.world.model_copy(update={"requests": arrivals})
    task = task.model_copy(update={"world": world_config})
    bank = load_bank(task)
    world = make_world(task, bank, count)
    worlds = torch.from_numpy(bank.worlds("tuning"))
    everywhere = torch.ones(count, dtype=torch.bool)
    keys = episode_keys(1, count)
    world.reset(everywhere, worlds[torch.arange(count) % len(worlds)], keys)
    controller = make_controller("max_gain", task.allocation, Physics.of(task.physics))
    controller.reset(everywhere, torch.Generator().manual_seed(0))
    for _ in range(WARM_SLOTS):
        world.step(controller.decide(world.state()))
    state = world.state()
    first = state.has_request.long().argsort(dim=1, descending=True, stable=True)[:, :DEVICES]
    # Nobody waits behind anybody, as at the task's own rate of arrivals.
    state = take_devices(state, first.sort(1).values)
    return state.with_(waiting_requests=torch.zeros_like(state.waiting_requests))


def measure(
    name: str, state: NetworkState, physics: Physics, best_s: Tensor | None, bound_s: Tensor
) -> Gap:
    """Let a controller decide and hold the objective of its decision against the best."""
    controller = make_controller(name, AllocationConfig(), physics)
    everyone = torch.ones(state.num_networks, dtype=torch.bool)
    controller.reset(everyone, torch.Generator().manual_seed(0))
    start = time.process_time()
    decision = controller.decide(state)
    spent_ms = 1e3 * (time.process_time() - start)
    value = total_remaining_s(state, decision, physics)
    over = 100 * (value / (bound_s if best_s is None else best_s) - 1)
    return Gap(
        name,
        float("nan") if best_s is None else float(over.mean()),
        float("nan") if best_s is None else float(over.max()),
        float((bound_s / value).mean()),
        spent_ms,
    )


def show(title: str, rows: list[Gap], console: Console) -> None:
    """Print a line per controller."""
    table = Table(title=title)
    table.add_column("controller", no_wrap=True)
    for column in ("over oracle (%)", "worst (%)", "bound / it", "ms"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (row.over_oracle_percent, row.worst_percent)
        shown = ("-" if figure != figure else f"{figure:.2f}" for figure in figures)
        table.add_row(row.name, *shown, f"{row.bound_share:.3f}", f"{row.decision_ms:.0f}")
    console.print(table)


def main(
    networks: Annotated[int, typer.Option("--drops", min=1, help="drops of 7 phones")] = 60,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the tables to this file as well")
    ] = None,
) -> None:
    """Hold one-slot controllers against the oracle at 7 x 3, and the bound against all."""
    torch.set_num_threads(THREADS)
    console, task = Console(), load_task(PROJECT / "experiments" / "tasks" / "quickstart.yaml")
    state, physics = drops(task, networks), Physics.of(task.physics)
    start = time.process_time()
    best_s = OneSlotOracle(AllocationConfig(), physics).search(state).total_remaining_s
    oracle_s = time.process_time() - start
    bound_s = lower_bound_s(state, physics)
    small = [measure(name, state, physics, best_s, bound_s) for name in NAMES]
    small.append(Gap("oracle", 0.0, 0.0, float((bound_s / best_s).mean()), 1e3 * oracle_s))
    show(f"{networks} drops of the quickstart, {DEVICES} x 3", small, console)
    crowd, usual = crowded_state(*LARGE)
    bound_s = lower_bound_s(crowd, usual)
    large = [measure(name, crowd, usual, None, bound_s) for name in NAMES]
    show("{} networks of {} x {}, synthetic bank".format(*LARGE), large, console)
    if json_file is not None:
        tables = {"small": small, "large": large}
        write_json(json_file, {k: [asdict(row) for row in rows] for k, rows in tables.items()})


if __name__ == "__main__":
    typer.run(main)
