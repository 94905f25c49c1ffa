"""The whole road in one command: bank, training, evaluation, real draft/verify runs, figures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agents.policy import load_policy
from agents.training import CHECKPOINT, best_policy_path
from envs.picture import draw_state
from experiments.comparison import compare, decode_with, rule_controller
from experiments.config import PROJECT, ExperimentConfig, load_experiment
from experiments.evaluation import evaluate_controller, load_bank, make_world
from experiments.runs import VALIDATION_EPISODES, load_run_config, train_experiment, write_json
from experiments.tables import decode_table, evaluation_table, write_csv
from uara.errors import UserError
from uara.figures.results import draw_latency_bars, draw_learning_curve
from uara.prediction import Physics
from uara.radio.bank import ChannelBank

CONFIG = PROJECT / "experiments" / "quickstart.yaml"
MAP_SLOT = 60  # the map shows the network half a minute into the first evaluation episode


def run_quickstart(folder: Path, seed: int, console: Console) -> list[Any]:
    """Build the bank, train, evaluate, decode and draw; a run that was cut goes on.

    Args:
        folder: of the run.
        seed: of training.
        console: where progress and tables go.

    Returns:
        evaluation rows, then rows of the real runs.

    Raises:
        UserError: if the folder holds a run of another config.
    """
    config = load_experiment(CONFIG, [f"seed={seed}"])
    if (folder / "config.yaml").exists() and load_run_config(folder) != config:
        raise UserError(
            f"{folder} holds a run of another config; remove it or give another --folder"
        )
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        bank = _build(config, bar)
        policy = _train(config, folder, bar)
        task = bar.add_task("3/4 evaluation", total=None)
        rows = compare(
            config.task,
            bank,
            config.task.evaluation.controllers,
            [policy],
            lambda done, total: bar.update(task, completed=done, total=total),
        )
        task = bar.add_task("4/4 real draft/verify runs", total=None)
        decoded, check = decode_with(
            config.task,
            policy,
            None,
            folder=folder / "decode",
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_csv(folder / "evaluation.csv", rows, task=config.task.config_hash())
    draw_latency_bars(rows, figures / "latency.png")
    _draw_curve(config, folder, bank, figures / "learning_curve.png")
    _draw_map(config, policy, bank, figures / "map.png")
    console.print(evaluation_table(rows, config.task.name))
    console.print(decode_table(decoded, config.task.name))
    console.print(check.sentence())
    console.print(
        f"figures: {figures}, timelines: {folder / 'decode'}\n"
        f"learning curves: tensorboard --logdir {folder}"
    )
    everything: list[Any] = [*rows, *(row.as_json() for row in decoded)]
    write_json(folder / "results.json", everything)
    return everything


def _build(config: ExperimentConfig, bar: Progress) -> ChannelBank:
    """Build the bank with Sionna, or load it."""
    task = bar.add_task("1/4 channel bank (Sionna)", total=None)
    bank = load_bank(
        config.task,
        progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.update(task, completed=1, total=1)
    return bank


def _train(config: ExperimentConfig, folder: Path, bar: Progress) -> Path:
    """Train to the end, going on where a run was cut; a finished run is kept."""
    task = bar.add_task("2/4 training", total=config.training.env_steps)
    policy = best_policy_path(folder, config.learner)
    finished = folder / "finished"
    if not finished.exists():

        def report(iteration: int, metrics: Mapping[str, float]) -> None:
            bar.update(task, completed=metrics["time/env_steps"])

        policy = train_experiment(
            config, folder, resume=(folder / CHECKPOINT).exists(), report=report
        )
        finished.touch()
    bar.update(task, completed=config.training.env_steps)
    return policy


def _draw_curve(config: ExperimentConfig, folder: Path, bank: ChannelBank, path: Path) -> None:
    """Draw validation latency over training beside the rules on the same episodes."""
    with (folder / "metrics.csv").open() as file:
        records = [row for row in csv.DictReader(file) if row.get("eval/e2e_latency_s")]
    steps = [float(row["env_steps"]) for row in records]
    latency = [float(row["eval/e2e_latency_s"]) for row in records]
    references = {}
    for name in config.task.evaluation.controllers:
        rows = evaluate_controller(
            rule_controller(name, config.task),
            config.task,
            bank,
            split="validation",
            episodes=VALIDATION_EPISODES,
        )
        references[name] = rows.interval("e2e_latency_s").mean
    draw_learning_curve({"mappo": (steps, latency)}, references, path)


def _draw_map(config: ExperimentConfig, policy: Path, bank: ChannelBank, path: Path) -> None:
    """Draw the network under the trained policy."""
    controller = load_policy(policy, Physics.of(config.task.physics))
    world = make_world(config.task, bank, 1)
    everyone = torch.ones(1, dtype=torch.bool)
    first = torch.from_numpy(bank.worlds("evaluation")[:1])
    world.reset(everyone, first, torch.tensor([config.task.evaluation.seed]))
    controller.reset(everyone, torch.Generator().manual_seed(0))
    for _ in range(MAP_SLOT):
        world.step(controller.decide(world.state()))
    picture = draw_state(world.state(), bank.site_position_m)
    Image.fromarray(picture).save(path)
