"""A training that is killed at any moment goes on as if it had not been."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from agents import checkpoint, metrics
from agents.learners import LearnerConfig
from agents.masac import MasacConfig
from agents.network import NetworkConfig
from agents.on_policy import ImitateConfig, MappoConfig
from agents.replay import ReplayConfig
from agents.training import TrainingConfig, train
from envs.action import ControlConfig
from envs.batched import BatchedEnv

MakeEnv = Callable[..., BatchedEnv]
NETWORK = NetworkConfig(hidden=8)
MAPPO = MappoConfig(network=NETWORK, rollout_slots=5, stagger=True, epochs=1)
MASAC = MasacConfig(
    network=NETWORK, rollout_slots=5, warmup=16, gradient_steps=2, batch_size=8, policy_start=1,
    replay=ReplayConfig(capacity=60),
)  # fmt: skip
COPY = MAPPO.model_copy(
    update={"imitate": ImitateConfig(controller="completion_greedy", iterations=3)}
)
TRAINING = TrainingConfig(env_steps=6 * 15, checkpoint_every=2, histograms_every=2, map_every=None)
COLUMNS = ("env_steps", "rollout/reward", "train/policy_loss", "train/value_loss")


def _equal(a: object, b: object) -> bool:
    """Compare nested dicts and lists, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str, count: int, env: BatchedEnv) -> None:
    """Let this process be killed at the `count`-th time of a moment."""
    left = [count]

    def is_due() -> bool:
        left[0] -= 1
        return left[0] == 0

    if moment == "in a slot":
        step = env.world.step

        def killed_in_step(decision: object) -> object:
            outcome = step(decision)  # type: ignore[arg-type]
            if is_due():
                _die()
            return outcome

        env.world.step = killed_in_step  # type: ignore[method-assign, assignment]
    elif moment == "in a checkpoint":

        def killed_in_save(content: object, path: Path) -> None:
            if is_due():
                path.write_bytes(b"half of a checkpoint")
                _die()
            save(content, path)

        save = torch.save
        checkpoint.torch.save = killed_in_save  # type: ignore[attr-defined]
    else:

        class KilledWriter(csv.DictWriter):  # type: ignore[type-arg]
            def writerow(self, rowdict: Mapping[str, object]) -> None:  # type: ignore[override]
                if is_due():
                    path = next(iter(paths))
                    with path.open("a") as file:
                        file.write("4")  # of 45
                    _die()
                super().writerow(rowdict)

        paths = [Path(os.environ["RUN_DIR"]) / "metrics.csv"]
        metrics.csv.DictWriter = KilledWriter  # type: ignore[attr-defined]


def _train_and_be_killed(
    make: Callable[[], BatchedEnv], config: LearnerConfig, run_dir: Path, moment: str, count: int
) -> None:
    """Train in a child process that is killed; wait for its end."""
    child = os.fork()
    if child == 0:
        os.environ["RUN_DIR"] = str(run_dir)
        env = make()
        _arm(moment, count, env)
        train(env, config, TRAINING, run_dir, seed=3)
        os._exit(0)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("config", "moment", "count"),
    [
        pytest.param(MAPPO, "in a slot", 16 + 5 * 2 + 3, id="mappo in a slot"),
        pytest.param(MAPPO, "in a checkpoint", 2, id="mappo in a checkpoint"),
        pytest.param(MASAC, "in a row", 5, id="masac in a row"),
        *(
            pytest.param(config, "in a slot", count, id=f"{name} {count}", marks=pytest.mark.slow)
            for name, config in (("mappo", MAPPO), ("masac", MASAC), ("copy", COPY))
            for count in (27, 31, 44)  # the first checkpoint follows slot 26
        ),
        pytest.param(MASAC, "in a checkpoint", 2, id="masac saves", marks=pytest.mark.slow),
        pytest.param(MAPPO, "in a row", 4, id="mappo in a row", marks=pytest.mark.slow),
    ],
)
def test_resume_that_forgets_moments_draws_or_buffer_is_a_bug(
    make_env: MakeEnv,
    every_head: ControlConfig,
    tmp_path: Path,
    config: LearnerConfig,
    moment: str,
    count: int,
) -> None:
    def make() -> BatchedEnv:
        return make_env(every_head, arrivals_per_s=0.5)

    _train_and_be_killed(make, config, tmp_path / "parts", moment, count)
    parts = train(make(), config, TRAINING, tmp_path / "parts", seed=99, resume=True)
    whole = train(make(), config, TRAINING, tmp_path / "whole", seed=3)
    assert checkpoint.load(parts)["iteration"] == 6
    assert _equal(checkpoint.load(parts)["state"], checkpoint.load(whole)["state"])
    rows = []
    for path in (tmp_path / "parts", tmp_path / "whole"):
        with (path / "metrics.csv").open() as file:
            rows.append([[row.get(c) for c in COLUMNS] for row in csv.DictReader(file)])
        assert not list(path.glob("*.partial*"))
    assert len(rows[0]) == 6
    assert rows[0] == rows[1]


def test_events_hold_scalars_histograms_pictures_and_hyperparameters(
    make_env: MakeEnv, every_head: ControlConfig, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = TRAINING.model_copy(update={"map_every": 6})
    scores = iter([9.0, 5.0, 7.0])
    train(
        make_env(every_head),
        MAPPO,
        training.model_copy(update={"validate_every": 2}),
        tmp_path,
        seed=3,
        validate=lambda controller: {"e2e_latency_s": next(scores)},
    )
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    heads = ("server", "bandwidth", "power", "draft_length")
    assert {f"rollout/choice_{head}" for head in heads} <= set(tags["histograms"])
    assert [event.step for event in events.Histograms("rollout/choice_power")] == [30, 60, 90]
    assert [event.step for event in events.Images("network")] == [90]
    assert events.Scalars("final/best_e2e_latency_s")[-1].value == 5.0
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert b"learner.learning_rate" in plugin.content
    assert b"observation.view" in plugin.content
