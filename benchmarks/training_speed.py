"""Training speed beside peers: `python -m benchmarks.training_speed`.

MAPPO of this project, stable-baselines3's PPO and MAPPO from TorchRL's parts (as BenchMARL
composes it) learn the association of one task, all fed by our batched environment: the same widths,
epochs and minibatches, one thread, processor time. `make benchmark-training` installs TorchRL in a
folder of its own; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from agents.learners import Learner, make_learner
from agents.on_policy import MappoConfig
from agents.sb3 import Sb3PpoConfig
from envs.action import ControlConfig
from envs.batched import BatchedEnv, RewardConfig
from experiments.config import load_task
from experiments.evaluation import load_bank, make_world

PEERS = Path(".peers-torchrl")
NETWORKS = 64
SERVERS = ControlConfig(draft_length=4)
Loop = tuple[Callable[[], float], Callable[[], float]]  # collect and update, in seconds


def make_env(task: Path, *, auto_reset: bool = True) -> BatchedEnv:
    """Make the environment that everybody is fed by."""
    config = load_task(task)
    world = make_world(config, load_bank(config), NETWORKS)
    return BatchedEnv(
        world, "train", SERVERS, RewardConfig(), 0, native=True, auto_reset=auto_reset
    )


def timed(learner: Learner) -> Loop:
    """Time the two halves of a learner's loop."""

    def collect() -> float:
        begin = time.process_time()
        learner.collect()
        return time.process_time() - begin

    def update() -> float:
        begin = time.process_time()
        learner.update(0.0)
        return time.process_time() - begin

    learner.start()
    return collect, update


def ours(task: Path) -> Loop:
    """Make MAPPO of this project."""
    config = MappoConfig(target_kl=None, stagger=False)
    return timed(make_learner(config, make_env(task), "device", 0))


def sb3(task: Path) -> Loop:
    """Make stable-baselines3's PPO, whose one controller sees the network as one flat row."""
    same = MappoConfig()
    rows = same.rollout_slots * NETWORKS // same.num_minibatches
    config = Sb3PpoConfig(
        rollout_slots=same.rollout_slots,
        batch_size=rows,
        epochs=same.epochs,
        hidden=same.network.hidden,
    )
    return timed(make_learner(config, make_env(task), "device", 0))


def torchrl(task: Path) -> Loop:
    """Make MAPPO from TorchRL's parts."""
    from benchmarks.torchrl_env import NetworkTorchRlEnv
    from benchmarks.torchrl_mappo import Settings, TorchRlMappo

    same = MappoConfig()
    settings = Settings(
        rollout_slots=same.rollout_slots,
        epochs=same.epochs,
        num_minibatches=same.num_minibatches,
        hidden=same.network.hidden,
    )
    learner = TorchRlMappo(NetworkTorchRlEnv(make_env(task, auto_reset=False)), settings)
    return learner.collect, learner.update


def measure(loop: Loop, iterations: int) -> tuple[float, float]:
    """Take the least processor times of a rollout and of an update, after one of each."""
    collect, update = loop
    collect()
    update()
    both = [(collect(), update()) for _ in range(iterations)]
    return min(first for first, _ in both), min(second for _, second in both)


def main() -> None:
    """Measure everybody and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=Path, default=Path("experiments/tasks/quickstart.yaml"))
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers: dict[str, Callable[[Path], Loop]] = {"ours": ours, "stable-baselines3 PPO": sb3}
    if PEERS.is_dir():
        sys.path.append(str(PEERS))
        makers["TorchRL MAPPO"] = torchrl
    slots = MappoConfig().rollout_slots * NETWORKS
    rows: dict[str, tuple[float, float]] = {}
    for name, make in makers.items():
        rows[name] = measure(make(options.task), options.iterations)
    table = Table(title=f"{options.task.stem}: {slots} network slots per iteration, 1 thread")
    for column in ("learner", "rollout s", "update s", "network slots/s", "loop x", "update x"):
        table.add_column(column)
    base = rows["ours"]
    for name, (collect_s, update_s) in rows.items():
        loop_s = collect_s + update_s
        table.add_row(
            name,
            f"{collect_s:.3f}",
            f"{update_s:.3f}",
            f"{slots / loop_s:,.0f}",
            f"{loop_s / sum(base):.1f}",
            f"{update_s / base[1]:.1f}",
        )
    Console(width=120).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps({"slots": slots, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
