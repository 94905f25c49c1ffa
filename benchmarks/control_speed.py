"""How the time of rules and controllers grows: `python -m benchmarks.control_speed`.

One thread; states are those of worlds in play in which every device has a request. Milliseconds
are those of the processor, the least of several decisions, so that what else runs counts less.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from agents.policy import load_policy
from benchmarks.env_speed import THREADS, make_recipe
from experiments.cards import SHIPPED
from experiments.runs import write_json
from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.control.completion import CompletionGreedy
from uara.control.local_greedy import LocalGreedy
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Controller, NetworkState
from uara.prediction import Physics
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.world.world import World

# Networks, devices, servers.
SIZES = ((1, 8, 3), (1, 30, 4), (256, 30, 4), (1, 60, 8), (1, 120, 13), (1, 180, 20))
PLAYED_SLOTS = 12  # of half a second
ARRIVALS_PER_S = 1.0
# Timed with all that they decide; a rule is timed by itself, without bandwidth and draft length.
POLICY = SHIPPED / "quickstart" / "policy.pt"  # its weights take networks of any size


def _shipped_policy(allocation: AllocationConfig, physics: Physics) -> Controller:
    return load_policy(POLICY, physics)


CONTROLLERS: dict[str, Callable[[AllocationConfig, Physics], Controller]] = {
    **{
        f"controller:{name}": partial(RuleController, name)
        for name in ("max_gain", "greedy_latency")
    },
    "controller:completion_greedy": CompletionGreedy,
    "controller:local_greedy": LocalGreedy,
    "controller:mappo": _shipped_policy,
}
NAMES = (*(name for name in ASSOCIATION_RULES if name != "exhaustive"), *CONTROLLERS)


@dataclass(frozen=True)
class Row:
    """What one rule or controller takes at one size."""

    name: str
    networks: int
    devices: int
    servers: int
    decision_ms: float


def crowded_state(networks: int, devices: int, servers: int) -> tuple[NetworkState, Physics]:
    """Play worlds on a synthetic bank until everybody has a request, and take the state."""
    usual = make_recipe(devices, servers).make_world(1)
    requests = usual.config.requests.model_copy(update={"arrivals_per_s": ARRIVALS_PER_S})
    config, physics = usual.config.model_copy(update={"requests": requests}), usual.physics
    rates = {task.name: TaskAcceptance(mean=0.7, std=0.1) for task in requests.tasks}
    table = AcceptanceTable("none", 1.0, {physics.codec.rule: rates})
    world = World(config, physics, usual.bank, table, networks)
    number = torch.arange(networks)
    everywhere = torch.ones_like(number, dtype=torch.bool)
    world.reset(everywhere, number % world.bank.config.train, number)
    controller = RuleController("max_gain", AllocationConfig(draft_length=4), physics)
    controller.reset(everywhere, torch.Generator().manual_seed(0))
    for _ in range(PLAYED_SLOTS):
        world.step(controller.decide(world.state()))
    return world.state(), physics


def decider(name: str, state: NetworkState, physics: Physics) -> Callable[[], object]:
    """Make what is timed.

    Raises:
        UserError: if there is no rule or controller of that name.
    """
    generator, allocation = torch.Generator().manual_seed(0), AllocationConfig()
    if name in ASSOCIATION_RULES:
        return partial(ASSOCIATION_RULES[name], state, Allocator(allocation, physics), generator)
    if name not in CONTROLLERS:
        allowed = ", ".join((*ASSOCIATION_RULES, *CONTROLLERS))
        raise UserError(f"rule '{name}' is unknown; allowed: {allowed}")
    controller = CONTROLLERS[name](allocation, physics)
    controller.reset(torch.ones(state.num_networks, dtype=torch.bool), generator)
    return partial(controller.decide, state)


def least_ms(decide: Callable[[], object], repeats: int) -> float:
    """Time a decision, the least of some after a first one."""
    decide()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        decide()
        spent.append(time.process_time() - start)
    return 1e3 * min(spent)


def show(rows: list[Row], console: Console) -> None:
    """Print a line per rule and a column per size."""
    sizes = list(dict.fromkeys((row.networks, row.devices, row.servers) for row in rows))
    table = Table(title=f"Milliseconds per decision of all networks; {THREADS} thread")
    table.add_column("rule", no_wrap=True)
    for networks, devices, servers in sizes:
        table.add_column(f"{networks} x\n{devices} x {servers}", justify="right")
    for name in dict.fromkeys(row.name for row in rows):
        table.add_row(name, *(f"{row.decision_ms:.1f}" for row in rows if row.name == name))
    console.print(table)


def main(
    rule: Annotated[
        list[str] | None, typer.Option(help="rule or controller to time; default: all")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="decisions timed, the least counts")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the table to this file as well")
    ] = None,
) -> None:
    """Time association rules and whole controllers at six sizes."""
    torch.set_num_threads(THREADS)
    rows = []
    for size in SIZES:
        state, physics = crowded_state(*size)
        for name in rule or NAMES:
            rows.append(Row(name, *size, least_ms(decider(name, state, physics), repeats)))
    show(rows, Console())
    if json_file is not None:
        write_json(json_file, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    typer.run(main)
