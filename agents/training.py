"""The one training loop: collect, update, log, validate, save; it resumes where it was cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agents import checkpoint
from agents.mappo import MappoConfig, MappoLearner
from agents.metrics import MetricsWriter
from agents.sb3 import Sb3PpoConfig, Sb3PpoLearner
from envs.batched import BatchedEnv
from envs.observation import View
from uara.errors import UserError
from uara.network import Controller

CHECKPOINT = "checkpoint.pt"
SCORE = "e2e_latency_s"  # of a validation; lower is better

LearnerConfig = MappoConfig | Sb3PpoConfig
Validate = Callable[[Controller], Mapping[str, float]]
Report = Callable[[int, Mapping[str, float]], None]


class TrainingConfig(BaseModel):
    """How long to train, and how often to look."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_steps: int = Field(
        500_000, gt=0, description="network slots to play, rounded up to rollouts"
    )
    time_limit_s: float | None = Field(
        None, gt=0, description="stop after this wall time, earlier runs included; null: no limit"
    )
    validate_every: int = Field(
        10, gt=0, description="iterations between validations; the last iteration is validated too"
    )
    checkpoint_every: int = Field(10, gt=0, description="iterations between checkpoints")


class Learner(Protocol):
    """What the loop asks of a learner."""

    policy_suffix: str

    @property
    def env_steps(self) -> int:
        """Network slots played so far."""

    def start(self) -> None:
        """Begin the first episodes."""

    def collect(self) -> dict[str, float]:
        """Play a rollout and return metrics rollout/..."""

    def update(self, progress: float) -> dict[str, float]:
        """Learn from the rollout and return metrics train/...; `progress` is in [0, 1]."""

    def controller(self) -> Controller:
        """Return the current policy, deterministic."""

    def save_policy(self, path: Path) -> None:
        """Write the current policy to a file with the suffix `policy_suffix`."""

    def policy_content(self) -> dict[str, Any]:
        """Return what makes a checkpoint loadable as a policy; may be empty."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""


def make_learner(config: LearnerConfig, env: BatchedEnv, view: View, seed: int) -> Learner:
    """Make the learner that a config names."""
    if isinstance(config, MappoConfig):
        return MappoLearner(config, env, view, seed)
    return Sb3PpoLearner(config, env, seed)


def best_policy_path(run_dir: Path, learner: LearnerConfig) -> Path:
    """Tell where a run keeps the policy of best validation (the last one without validation)."""
    return run_dir / f"policy{_suffix(learner)}"


def last_policy_path(run_dir: Path, learner: LearnerConfig) -> Path:
    """Tell where a run keeps its last policy."""
    return run_dir / f"policy_last{_suffix(learner)}"


def train(
    env: BatchedEnv,
    learner: LearnerConfig,
    training: TrainingConfig,
    run_dir: Path | str,
    seed: int,
    *,
    view: View = "device",
    resume: bool = False,
    validate: Validate | None = None,
    report: Report | None = None,
    resolved_config: str = "{}",
) -> Path:
    """Train and leave checkpoint, policies, metrics.csv and TensorBoard events in the run folder.

    Args:
        env: B networks, of which the learner is the only user.
        learner: which learner, with every switch.
        training: length and intervals.
        run_dir: made where it is missing.
        seed: of weights, drawn actions and shuffling; the environment has its own.
        view: what the actor may read.
        resume: go on from the folder's checkpoint; on CPU bit for bit as if never cut (MAPPO).
        validate: plays a controller and returns metrics, `e2e_latency_s` (lower is better) among
            them; the policy of least is kept.
        report: called after each iteration with its number and metrics.
        resolved_config: JSON of the whole experiment, stored in the checkpoint.

    Returns:
        Path of the final checkpoint; see `best_policy_path` and `last_policy_path`.

    Raises:
        UserError: if the folder holds a run and `resume` is off, holds none and it is on, or holds
            one of another learner or control.
    """
    run_dir = Path(run_dir)
    run = _Run(run_dir / CHECKPOINT, learner, env, view, seed, resolved_config)
    if resume:
        run.restore()
    else:
        if run.path.exists():
            raise UserError(
                f"'{run_dir}' already holds a run; resume it or give another run folder"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        run.learner.start()
    began = time.monotonic() - run.elapsed_s
    with MetricsWriter(run_dir, run.learner.env_steps) as writer:
        while run.progress(training) < 1:
            metrics = _iterate(run, training)
            run.elapsed_s = time.monotonic() - began
            over = run.progress(training) >= 1
            if validate is not None and (over or run.iteration % training.validate_every == 0):
                metrics |= run.validate(validate, best_policy_path(run_dir, learner))
            run.elapsed_s = time.monotonic() - began
            metrics["time/elapsed_s"] = run.elapsed_s
            writer.write(run.learner.env_steps, metrics)
            if over or run.iteration % training.checkpoint_every == 0:
                run.save()
            if report is not None:
                report(run.iteration, metrics)
    run.learner.save_policy(last_policy_path(run_dir, learner))
    if run.best_score is None:
        run.learner.save_policy(best_policy_path(run_dir, learner))
    return run.path


def _iterate(run: _Run, training: TrainingConfig) -> dict[str, float]:
    """Collect and update once, timed."""
    start, steps = time.monotonic(), run.learner.env_steps
    progress = run.progress(training)
    metrics = run.learner.collect()
    collected = time.monotonic()
    metrics |= run.learner.update(progress)
    updated = time.monotonic()
    run.iteration += 1
    return metrics | {
        "time/collect_s": collected - start,
        "time/update_s": updated - collected,
        "time/env_steps": float(run.learner.env_steps),
        "time/env_steps_per_s": (run.learner.env_steps - steps) / (updated - start),
    }


class _Run:
    """A training between two iterations: the learner and what is counted around it."""

    def __init__(
        self,
        path: Path,
        config: LearnerConfig,
        env: BatchedEnv,
        view: View,
        seed: int,
        resolved_config: str,
    ) -> None:
        self.path = path
        self.config = config
        self.env = env
        self.resolved_config = resolved_config
        self.learner = make_learner(config, env, view, seed)
        self.iteration = 0
        self.elapsed_s = 0.0
        self.best_score: float | None = None

    def progress(self, training: TrainingConfig) -> float:
        """Tell the share of the training that is over, by steps or by time."""
        share = self.learner.env_steps / training.env_steps
        if training.time_limit_s is not None:
            share = max(share, self.elapsed_s / training.time_limit_s)
        return share

    def validate(self, validate: Validate, path: Path) -> dict[str, float]:
        """Validate the policy and keep it if it is the best so far."""
        result = validate(self.learner.controller())
        score = float(result[SCORE])
        if self.best_score is None or score < self.best_score:
            self.best_score = score
            self.learner.save_policy(path)
        metrics = {f"eval/{key}": float(value) for key, value in result.items()}
        return metrics | {f"eval/best_{SCORE}": self.best_score}

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            **self.learner.policy_content(),
            "kind": self.config.kind,
            "learner": self.config.model_dump_json(),
            "control": self.env.control.model_dump_json(),
            "resolved_config": self.resolved_config,
            "state": self.learner.state_dict(),
            "iteration": self.iteration,
            "elapsed_s": self.elapsed_s,
            "best_score": self.best_score,
        }
        checkpoint.save(self.path, content)

    def restore(self) -> None:
        """Read the checkpoint back.

        Raises:
            UserError: if it is missing, no checkpoint of a training, or of other configs.
        """
        content = checkpoint.load(self.path)
        if "state" not in content:
            raise UserError(
                f"'{self.path}' is a policy without the state of its training; give the folder of "
                "a run"
            )
        for what, now in (("learner", self.config), ("control", self.env.control)):
            if content[what] != now.model_dump_json():
                raise UserError(
                    f"the {what} config differs from the one of '{self.path}'; resume with the "
                    "config of the run folder"
                )
        self.learner.load_state_dict(content["state"])
        self.iteration = int(content["iteration"])
        self.elapsed_s = float(content["elapsed_s"])
        self.best_score = content["best_score"]


def _suffix(learner: LearnerConfig) -> str:
    """Tell the file suffix of a learner's policies."""
    kind = MappoLearner if isinstance(learner, MappoConfig) else Sb3PpoLearner
    return kind.policy_suffix
