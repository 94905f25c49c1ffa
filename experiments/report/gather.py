"""Reads what the folders of trainings hold, and puts the seeds of an experiment together.

Shape legend: X points of a curve, S seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agents.metrics import STEP
from agents.training import best_policy_path
from experiments.config import ExperimentConfig
from experiments.runs import load_run_config
from uara.errors import UserError
from uara.figures.curves import Curve

Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps (X,), values (X,)


@dataclass(frozen=True)
class TrainedRun:
    """One training: its config as it was resolved, its metrics and its policy."""

    folder: Path
    config: ExperimentConfig
    config_text: str
    series: dict[str, Series]

    @property
    def policy(self) -> Path:
        """File of the policy of best validation."""
        return best_policy_path(self.folder, self.config.learner)


def read_run(folder: Path) -> TrainedRun:
    """Read the folder of a training.

    Raises:
        UserError: if it holds no config or no metrics.
    """
    config = load_run_config(folder)
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        raise UserError(f"{folder} holds no metrics.csv; train it first (uara train)")
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != STEP]
    series = {}
    for name in names:
        known = [(float(row[STEP]), float(row[name])) for row in rows if row[name]]
        if known:
            steps, values = np.array(known).T
            series[name] = (steps, values)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    return TrainedRun(folder, config, text, series)


def find_runs(folders: Sequence[Path]) -> dict[str, list[TrainedRun]]:
    """Read runs by experiment; a folder of runs stands for all below it.

    Args:
        folders: folders of runs (`runs/quickstart/seed0`) or of experiments (`runs/quickstart`).

    Returns:
        per experiment, its runs by seed.

    Raises:
        UserError: if a folder holds no run, or two runs of a name are of different experiments.
    """
    found: dict[Path, TrainedRun] = {}
    for folder in folders:
        configs = sorted(folder.rglob("config.yaml")) if folder.is_dir() else []
        if not configs:
            raise UserError(f"{folder} holds no run; give the folder of a training or of several")
        found |= {path.parent.resolve(): read_run(path.parent) for path in configs}
    groups: dict[str, list[TrainedRun]] = {}
    for run in found.values():
        groups.setdefault(run.config.name, []).append(run)
    for name, runs in groups.items():
        runs.sort(key=lambda run: run.config.seed)
        first = runs[0].config.model_copy(update={"seed": 0})
        other = [r for r in runs if r.config.model_copy(update={"seed": 0}) != first]
        if other:
            raise UserError(
                f"{runs[0].folder} and {other[0].folder} are both named '{name}' but differ in "
                "more than the seed; rename one or leave it out"
            )
    return groups


def mean_curve(series: Sequence[Series], level: float = 0.95) -> Curve:
    """Average curves of several seeds on the steps of all of them.

    Between its points a curve is taken as straight, and only where all seeds have begun and none
    has ended is there a mean.

    Args:
        series: per seed.
        level: of the t interval over seeds.
    """
    begin = max(steps[0] for steps, _ in series)
    end = min(steps[-1] for steps, _ in series)
    grid = np.unique(np.concatenate([steps for steps, _ in series]))
    grid = grid[(grid >= begin) & (grid <= end)]
    values = np.stack([np.interp(grid, steps, value) for steps, value in series])  # (S, X)
    mean = values.mean(0)
    if len(series) < 2:
        return Curve(grid, mean, mean, mean)
    error = values.std(0, ddof=1) / np.sqrt(len(series))
    half = float(stats.t.ppf(0.5 + level / 2, len(series) - 1)) * error
    return Curve(grid, mean, mean - half, mean + half)
