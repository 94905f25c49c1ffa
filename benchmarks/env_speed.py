"""Speed of the environment on one thread, beside mobile-env: `python -m benchmarks.env_speed`.

A step is a full one: random choices of server, bandwidth, power and draft length for every device,
the decision, the world's step, rewards, observations, and the resets of ended episodes. Seconds are
those of the processor, so that what else runs on the machine counts less.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from envs import Action, BatchedEnv, ControlConfig, EnvRecipe
from uara.errors import UserError
from uara.native import compiler
from uara.prediction import Physics, PhysicsConfig
from uara.radio.bank import BankConfig, ChannelBank
from uara.radio.link import LinkConfig
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.serving.hardware import RACKS
from uara.world.batteries import BatteryConfig
from uara.world.config import WorldConfig
from uara.world.world import World

THREADS = 1
NAME = "uara"
SIZES = ((30, 4), (30, 13), (180, 20))  # devices, servers; the second is that of the peer
BATCH_SIZES = (1, 64, 128, 256, 512, 1024, 2048)
PAIRS_MAX = 500_000  # larger batches of many pairs only cost time
WORLDS = 16
PEER_ENVIRONMENT = "mobile-large-central-v0"
PEER_PYTHON = Path(".venv-mobile-env/bin/python")
PEER_SCRIPT = Path(__file__).with_name("mobile_env_speed.py")
# Every choice is the action's, so that no rule of `uara.control` is timed.
ALL_LEARNED = ControlConfig(
    association="learned", bandwidth="learned", power="learned", draft_length="learned"
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    devices: int
    servers: int
    batch: int
    threads: int
    env_steps_per_s: float
    agent_steps_per_s: float
    peer: str | None = None  # name and version, where the row has its size
    ratio: float | None = None  # agent-steps/s over those of the peer


def synthetic_bank(num_devices: int, num_servers: int) -> ChannelBank:
    """Make a bank of plausible gains from path loss, shadowing and fading, without a builder."""
    slots = WorldConfig().horizon_slots
    config = BankConfig(
        num_devices=num_devices, num_servers=num_servers, num_slots=slots,
        train=WORLDS, tuning=0, validation=0, evaluation=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    radius_m = 150.0 * num_servers**0.5
    sites = rng.uniform(-radius_m, radius_m, (num_servers, 2))
    start = rng.uniform(-radius_m, radius_m, (WORLDS, 1, num_devices, 2))
    step = rng.normal(0, 1, (WORLDS, 1, num_devices, 2)) * config.slot_s
    position = start + step * np.arange(slots)[:, None, None]
    distance_m = np.linalg.norm(position[..., None, :] - sites, axis=-1).clip(10)
    shadowing_db = rng.normal(0, 6, (WORLDS, 1, num_devices, num_servers))
    # 3GPP TR 38.901 Table 7.4.1-1, UMi street canyon without line of sight (optional form).
    loss_db = 32.4 + 20 * np.log10(config.carrier_hz / 1e9) + 31.9 * np.log10(distance_m)
    gain_db = shadowing_db - loss_db + rng.normal(0, 2, loss_db.shape)
    return ChannelBank(
        gain_db=gain_db.astype(np.float16),
        position_m=position.astype(np.float32),
        velocity_m_s=np.broadcast_to(step / config.slot_s, position.shape).astype(np.float32),
        is_los=np.zeros(gain_db.shape, np.bool_),
        site_position_m=sites.astype(np.float32),
        config=config,
        sionna_version="none",
        build_s=0.0,
    )


def make_recipe(
    num_devices: int, num_servers: int, *, native: bool = False, options: bool = False
) -> EnvRecipe:
    """Describe the timed environment on a synthetic bank.

    Args:
        num_devices: M.
        num_servers: E; the racks in turn.
        native: step and observe with compiled code.
        options: one band for all servers, MCS tables, batteries, and gains that are known two slots
            late, in place of the default world and physics.
    """
    racks = list(RACKS)
    config = WorldConfig(
        servers=tuple(racks[i % len(racks)] for i in range(num_servers)),
        batteries=BatteryConfig() if options else None,
        csi_delay_slots=2 if options else WorldConfig().csi_delay_slots,
    )
    link = LinkConfig(interference="reuse1", adaptation="mcs") if options else LinkConfig()
    physics = Physics.of(PhysicsConfig(link=link))
    rates = {task.name: TaskAcceptance(mean=0.7, std=0.1) for task in config.requests.tasks}
    acceptance = AcceptanceTable("none", 1.0, {physics.codec.rule: rates})
    bank = synthetic_bank(num_devices, num_servers)

    def make_world(num_networks: int) -> World:
        return World(config, physics, bank, acceptance, num_networks)

    return EnvRecipe(make_world, control=ALL_LEARNED, native=native)


def random_action(env: BatchedEnv, generator: torch.Generator) -> Action:
    """Draw every choice of every device."""
    shape = (env.num_networks, env.world.num_devices)
    longest = env.world.physics.config.max_draft_length
    return Action(
        server=torch.randint(env.world.num_servers, shape, generator=generator),
        bandwidth=torch.rand(shape, generator=generator),
        power=torch.rand(shape, generator=generator),
        draft_length=torch.randint(longest + 1, shape, generator=generator),
    )


def steps_per_s(env: BatchedEnv, repeats: int) -> float:
    """Time whole episodes and return the best env-steps per processor second of all networks."""
    generator = torch.Generator().manual_seed(1)
    slots = env.last_slot
    best = 0.0
    env.reset()
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(slots):
            env.step(random_action(env, generator))
        best = max(best, slots * env.num_networks / (time.process_time() - start))
    return best


def measure(num_devices: int, num_servers: int, repeats: int) -> list[Row]:
    """Time compiled code and torch, plain and with options on; add torch's batch of one."""
    kinds = {
        f"{NAME}, native": {"native": True},
        f"{NAME}, native, options": {"native": True, "options": True},
        NAME: {},
        f"{NAME}, options": {"options": True},
    }
    if not compiler():
        kinds = {name: switches for name, switches in kinds.items() if "native" not in switches}
    best, alone = [], []
    for name, switches in kinds.items():
        recipe = make_recipe(num_devices, num_servers, **switches)
        rows = []
        for batch in BATCH_SIZES:
            if batch * num_devices * num_servers > PAIRS_MAX:
                break
            speed = steps_per_s(recipe.batched(batch, seed=0), repeats)
            agents = speed * num_devices
            rows.append(Row(name, num_devices, num_servers, batch, THREADS, speed, agents))
        best.append(max(rows, key=lambda row: row.env_steps_per_s))
        alone += [row for row in rows if row.batch == 1 and name == NAME]
    return [*best, *alone]


def measure_peer(python: Path, repeats: int, seconds: float) -> Row:
    """Time mobile-env in a process of its own.

    Raises:
        UserError: if its environment is missing or its run fails.
    """
    mend = "make it with `make benchmark-peers`, or give another with --peer-python"
    if not python.is_file():
        raise UserError(f"no Python with mobile-env at {python}; {mend}")
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    run = subprocess.run(
        [str(python), str(PEER_SCRIPT), str(repeats), str(seconds)],
        env={**os.environ, **one_thread},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"mobile-env did not run with {python} ({reason}); {mend}")
    raw: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    speed, devices = float(raw["env_steps_per_s"]), int(raw["devices"])
    name = str(raw["peer"])
    return Row(
        name, devices, int(raw["servers"]), 1, THREADS, speed, speed * devices, peer=name, ratio=1.0
    )


def beside(rows: list[Row], peer: Row) -> list[Row]:
    """Add the ratio to the rows of the peer's size, and the peer itself."""
    size = (peer.devices, peer.servers)
    compared = [
        replace(row, peer=peer.what, ratio=row.agent_steps_per_s / peer.agent_steps_per_s)
        if (row.devices, row.servers) == size
        else row
        for row in rows
    ]
    return [*compared, peer]


def machine() -> dict[str, str]:
    """Name what was timed on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    table = Table(
        title=f"Full steps, {THREADS} thread",
        caption=about,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for column in ("devices", "servers", "batch", "env-steps/s", "agent-steps/s", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.what.removesuffix(PEER_ENVIRONMENT).strip(),
            str(row.devices),
            str(row.servers),
            str(row.batch),
            f"{row.env_steps_per_s:,.0f}",
            f"{row.agent_steps_per_s:,.0f}",
            "" if row.ratio is None else f"{row.ratio:,.0f}",
        )
    console.print(table)


def write_json(rows: list[Row], path: Path) -> None:
    """Write rows and machine, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the table to this file as well")
    ] = None,
    peer_python: Annotated[
        Path, typer.Option(help="Python of the environment that holds mobile-env")
    ] = PEER_PYTHON,
    repeats: Annotated[int, typer.Option(min=1, help="repeats, of which the best counts")] = 5,
    peer_seconds: Annotated[float, typer.Option(min=0.1, help="length of a peer's repeat")] = 3.0,
) -> None:
    """Time full steps on one thread, batched and alone, beside mobile-env."""
    torch.set_num_threads(THREADS)
    console = Console()
    rows = [row for size in SIZES for row in measure(*size, repeats)]
    try:
        rows = beside(rows, measure_peer(peer_python, repeats, peer_seconds))
    except UserError as error:
        console.print(f"No comparison: {error}", highlight=False, soft_wrap=True)
    show(rows, console)
    if json_file is not None:
        write_json(rows, json_file)


if __name__ == "__main__":
    typer.run(main)
