"""Trains experiments over seeds and evaluates each; what is done is not done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from agents.policy import load_policy
from agents.training import CHECKPOINT, best_policy_path
from experiments.config import ExperimentConfig, load_experiment
from experiments.evaluation import METRICS, EpisodeRows, evaluate_controller, load_bank
from experiments.request_metrics import DETAILS
from experiments.runs import (
    RUNS,
    evaluation_file,
    load_run_config,
    run_folder,
    train_experiment,
    write_json,
)
from uara.errors import UserError
from uara.files import whole_file
from uara.prediction import Physics

Done = Callable[[Path], None]


def save_rows(rows: EpisodeRows, path: Path, task_hash: str | None = None) -> None:
    """Write per-episode rows to a Parquet file, whole or not at all.

    Args:
        rows: what to keep.
        path: of the file.
        task_hash: of the task that they were made on, where rows are kept for later.
    """
    columns: dict[str, object] = {"world": rows.world} | dict(rows.metrics)
    facts = {
        "controller": rows.controller,
        "observes": rows.observes,
        "decide_s": rows.decide_s,
        "capped": rows.capped,
    }
    metadata = {"uara": json.dumps(facts)}
    if task_hash is not None:
        metadata["uara-task"] = json.dumps(task_hash)
    table = pa.table(columns).replace_schema_metadata(metadata)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def load_rows(path: Path) -> EpisodeRows:
    """Read per-episode rows back."""
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"uara"])
    return EpisodeRows(
        world=table["world"].to_numpy(),
        metrics={
            name: np.asarray(table[name].to_numpy())
            for name in (*METRICS, *DETAILS)
            if name in METRICS or name in table.column_names
        },
        **facts,
    )


def run_one(config: ExperimentConfig, root: Path, banks: Path) -> Path:
    """Train one run to its end (going on where it was cut) and evaluate it, unless that is done.

    Returns:
        The file of its per-episode rows.

    Raises:
        UserError: if the run's folder holds a run of another config.
    """
    torch.set_num_threads(1)
    run_dir = run_folder(config, root)
    result = evaluation_file(run_dir)
    if (run_dir / "config.yaml").exists() and load_run_config(run_dir) != config:
        raise UserError(
            f"{run_dir} holds a run of another config; remove it or rename the experiment"
        )
    if result.exists():
        return result
    train_experiment(config, run_dir, banks=banks, resume=(run_dir / CHECKPOINT).exists())
    policy = load_policy(best_policy_path(run_dir, config.learner), Physics.of(config.task.physics))
    rows = evaluate_controller(policy, config.task, load_bank(config.task, banks))
    save_rows(rows, result)
    row = {name: rows.interval(name).as_json() for name in METRICS}
    write_json(run_dir / "result.json", {"seed": config.seed, "metrics": row})
    return result


def sweep(
    experiments: Sequence[Path],
    seeds: Sequence[int],
    *,
    overrides: Sequence[str] = (),
    root: Path = RUNS,
    banks: Path = Path("banks"),
    workers: int = 2,
    done: Done | None = None,
) -> list[Path]:
    """Run experiments x seeds; a sweep that was killed goes on where it was.

    Args:
        experiments: config files.
        seeds: seeds of training.
        overrides: `k=v` for every run.
        root: folder of runs.
        banks: folder of channel banks; they are built here first, not once per worker.
        workers: processes, one thread each.
        done: called with each finished result.

    Returns:
        Files of per-episode rows, experiments first, in the order given.
    """
    configs = [
        load_experiment(path, [*overrides, f"seed={seed}"])
        for path in experiments
        for seed in seeds
    ]
    for task in {config.task.config_hash(): config.task for config in configs}.values():
        load_bank(task, banks)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_one, config, root, banks) for config in configs]
        for future in as_completed(futures):
            if done is not None:
                done(future.result())
    return [future.result() for future in futures]
