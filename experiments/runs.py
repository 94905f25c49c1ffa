"""Run folders: the resolved config with versions, and where a run keeps what.

runs/<experiment>/seed<k>/: config.yaml, metrics.csv, TensorBoard events, checkpoint.pt, policy.*
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from agents.training import CHECKPOINT, best_policy_path, train
from envs.batched import BatchedEnv
from experiments.config import PROJECT, ExperimentConfig
from experiments.evaluation import evaluate_controller, load_bank, make_world
from uara.errors import UserError
from uara.files import whole_file
from uara.network import Controller

RUNS = Path("runs")
VALIDATION_EPISODES = 64
PACKAGES = ("torch", "numpy", "sionna-no-rt", "transformers", "stable-baselines3", "pettingzoo")

Report = Callable[[int, Mapping[str, float]], None]


def git_commit() -> str:
    """Return the project's commit, with `+` behind it where the tree differs from it."""

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(PROJECT), *words], capture_output=True, text=True, check=False
        )
        return run.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml")
    return commit + ("+" if dirty else "")


def file_hash(path: Path) -> str:
    """Hash a file's content: 16 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Collect versions, commit, machine and threads: what a number needs besides its config."""
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "command": " ".join((_program(Path(sys.argv[0])), *sys.argv[1:])),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _program(path: Path) -> str:
    """Name a program without where it lies on this machine."""
    return path.parent.name if path.name == "__main__.py" else path.name


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all; numbers that are unknown or unbounded become null."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(content: object) -> object:
    """Replace what JSON has no word for: infinities and NaN."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def run_folder(config: ExperimentConfig, root: Path = RUNS) -> Path:
    """Name the folder of a run."""
    return root / config.name / f"seed{config.seed}"


def evaluation_file(run_dir: Path) -> Path:
    """Name the file of a run's per-episode rows on the evaluation worlds."""
    return run_dir / "evaluation.parquet"


def train_experiment(
    config: ExperimentConfig,
    run_dir: Path,
    *,
    banks: Path = Path("banks"),
    resume: bool = False,
    report: Report | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train an experiment and return the policy of best validation.

    Args:
        config: the experiment.
        run_dir: its folder.
        banks: folder of channel banks.
        resume: go on from the folder's checkpoint.
        report: called after each iteration with its number and metrics.
        progress: called while the bank is built.

    Raises:
        UserError: if the folder holds a run and `resume` is off, or the other way round.
    """
    bank = load_bank(config.task, banks, progress)
    world = make_world(config.task, bank, config.num_networks)
    env = BatchedEnv(
        world, "train", config.control, config.reward, config.seed, native=config.native
    )

    def validate(controller: Controller) -> dict[str, float]:
        rows = evaluate_controller(
            controller, config.task, bank, split="validation", episodes=VALIDATION_EPISODES
        )
        return {
            "e2e_latency_s": rows.interval("e2e_latency_s").mean,
            "handovers": rows.interval("handovers").mean,
        }

    resolved = {"experiment": config.model_dump(mode="json"), "provenance": provenance()}
    if not resume and not (run_dir / CHECKPOINT).exists():
        write_text(run_dir / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    train(
        env,
        config.learner,
        config.training,
        run_dir,
        config.seed,
        view=config.observation.view,
        resume=resume,
        validate=validate,
        report=report,
        resolved_config=json.dumps(resolved),
    )
    return best_policy_path(run_dir, config.learner)


def load_run_config(run_dir: Path) -> ExperimentConfig:
    """Read the resolved config of a run.

    Raises:
        UserError: if the folder holds none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} holds no config.yaml; give the folder of a run")
    raw = yaml.safe_load(path.read_text())
    return ExperimentConfig.model_validate(raw["experiment"])
