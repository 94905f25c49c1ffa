"""The one training loop: collect, update, log, validate, save; it resumes where it was cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from agents import checkpoint
from agents.learners import LearnerConfig, make_learner, policy_suffix
from agents.metrics import MetricsWriter
from envs.batched import BatchedEnv
from envs.observation import View
from uara.errors import UserError
from uara.network import Controller

CHECKPOINT = "checkpoint.pt"
SCORE = "e2e_latency_s"  # of a validation; lower is better

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
    histograms_every: int = Field(
        10, gt=0, description="iterations between histograms of the choices of each head"
    )
    map_every: int | None = Field(
        50, gt=0, description="iterations between pictures of the network; null: none"
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu",
        description="where networks and rollouts live; auto: CUDA where present. The environment "
        "plays on the CPU, so small networks learn faster there",
    )

    def torch_device(self) -> torch.device:
        """Resolve the device.

        Raises:
            UserError: if CUDA is asked for and there is none.
        """
        present = torch.cuda.is_available()
        if self.device == "cuda" and not present:
            raise UserError(
                "training.device is cuda but this machine shows none; set it to cpu or auto"
            )
        return torch.device("cuda" if self.device != "cpu" and present else "cpu")


def best_policy_path(run_dir: Path, learner: LearnerConfig) -> Path:
    """Tell where a run keeps the policy of best validation (the last one without validation)."""
    return run_dir / f"policy{policy_suffix(learner)}"


def last_policy_path(run_dir: Path, learner: LearnerConfig) -> Path:
    """Tell where a run keeps its last policy."""
    return run_dir / f"policy_last{policy_suffix(learner)}"


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
    device = training.torch_device()
    run = _Run(run_dir / CHECKPOINT, learner, env, view, seed, device, resolved_config)
    if resume:
        run.restore()
    else:
        if run.path.exists():
            raise UserError(
                f"'{run_dir}' already holds a run; resume it or give another run folder"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        run.learner.start()
    for rest in run_dir.glob("*.partial*"):  # of a training that was killed while it wrote
        rest.unlink()
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
            run.show(writer, training)
            if over or run.iteration % training.checkpoint_every == 0:
                run.save()
            if report is not None:
                report(run.iteration, metrics)
        writer.write_hyperparameters(run.options(view, training), run.results())
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
        device: torch.device,
        resolved_config: str,
    ) -> None:
        self.path = path
        self.config = config
        self.env = env
        self.seed = seed
        self.resolved_config = resolved_config
        self.learner = make_learner(config, env, view, seed, device)
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

    def show(self, writer: MetricsWriter, training: TrainingConfig) -> None:
        """Write histograms and the map of the first network where it is their turn."""
        step = self.learner.env_steps
        if self.iteration % training.histograms_every == 0:
            writer.write_histograms(step, self.learner.histograms())
        if training.map_every is not None and self.iteration % training.map_every == 0:
            # Drawing loads matplotlib, which trainings without maps should not pay.
            from envs.picture import draw_state

            picture = draw_state(self.env.state, self.env.world.bank.site_position_m)
            writer.write_picture(step, "network", picture)

    def options(self, view: View, training: TrainingConfig) -> dict[str, object]:
        """Name what was chosen, by the names of an experiment's config."""
        chosen = {
            "learner": self.config.model_dump(mode="json"),
            "control": self.env.control.model_dump(mode="json"),
            "training": training.model_dump(mode="json"),
        }
        return {"observation.view": view, "seed": self.seed} | _flat(chosen)

    def results(self) -> dict[str, float]:
        """Name what came out."""
        results = {"env_steps": float(self.learner.env_steps), "elapsed_s": self.elapsed_s}
        return results if self.best_score is None else results | {f"best_{SCORE}": self.best_score}

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


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Join the keys of nested mappings by dots."""
    flat: dict[str, object] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
