"""Bugs that learning code is known for, each with the test that catches it.

Here stand those without a better place. The others: cells paired with another network
(test_rollout.py, test_replay.py), normalised advantages that depend on the unit of the reward
(test_value_norm.py), resume that forgets something (test_killed_training.py), the seed test of one
step (tests/envs/test_parallel.py), targets apart from critics at the start, policy delay and a
warm-up of half of the space (test_masac.py), one size of network per number of devices
(test_network.py), masks that make entropies infinite (test_heads.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import checkpoint
from agents.mappo import MappoLearner
from agents.network import NetworkConfig
from agents.on_policy import MappoConfig
from agents.training import TrainingConfig, train
from envs.action import Action, ControlConfig
from envs.batched import BatchedEnv
from envs.observation import Observation
from experiments.statistics import mean_interval, paired_difference
from tests.agents.toys import Constant
from uara.network import Controller

MakeEnv = Callable[..., BatchedEnv]
SMALL = MappoConfig(
    network=NetworkConfig(hidden=16), rollout_slots=8, stagger=False, epochs=1, num_minibatches=1
)


class _Cut(Constant):
    """Shows the slot, so that the true last observation and the next first one differ."""

    def show(self, device: torch.Tensor, pair: torch.Tensor, server: torch.Tensor) -> None:
        device[..., 0] = float(self.slot)


@pytest.mark.parametrize("is_cut", [True, False])
def test_time_limit_treated_as_an_end_is_a_bug(is_cut: bool) -> None:
    env = _Cut(3)
    env.ends_truncated = is_cut
    config = SMALL.model_copy(update={"discount": 0.5, "trace": 0.0})
    learner = MappoLearner(config, env, "device", seed=0)  # type: ignore[arg-type]
    # Slot k is worth k: what follows slots 0 to 3 are slots 1 to 4, never the 0 of a new episode.
    learner._value = lambda observation: observation.device[:, :, 0]  # type: ignore[method-assign]
    learner.start()
    learner.collect()
    assert learner._rollout is not None
    batch, _ = learner._prepare(*learner._rollout)
    target = learner.value_norm.denormalise(batch.target).view(8, 3)
    following = torch.tensor([1.0, 2.0, 3.0, 4.0 if is_cut else 0.0]).repeat(2)
    torch.testing.assert_close(target[:, 0], 1 + 0.5 * following)


def _play(env: BatchedEnv, slots: int, beside: BatchedEnv | None = None) -> torch.Tensor:
    """Play choices of a stream of their own and return what was observed, slot by slot."""
    drawing = torch.Generator().manual_seed(7)
    observation = env.reset(seed=3)
    shown = []
    for slot in range(slots):
        score = torch.rand(observation.mask.shape, generator=drawing)
        action = Action(server=(score * observation.mask).argmax(-1))
        observation = env.step(action).observation
        shown.append(observation.pair.clone())
        if beside is not None and slot % 3 == 0:
            beside.reset(seed=slot)
    return torch.stack(shown)


def test_instances_that_share_randomness_are_a_bug(make_env: MakeEnv) -> None:
    control = ControlConfig(draft_length=4)
    alone = _play(make_env(control, arrivals_per_s=1.0), 40)
    beside = make_env(control, arrivals_per_s=1.0, num_networks=5)
    assert torch.equal(alone, _play(make_env(control, arrivals_per_s=1.0), 40, beside))


def test_resetting_networks_one_by_one_is_a_bug(
    make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env(ControlConfig(draft_length=4), num_networks=6)
    observation = env.reset()
    masks: list[torch.Tensor] = []
    reset = env.world.reset

    def counted(mask: torch.Tensor, *rest: torch.Tensor) -> None:
        masks.append(mask.clone())
        reset(mask, *rest)

    monkeypatch.setattr(env.world, "reset", counted)

    def play(slots: int) -> None:
        for _ in range(slots):
            env.step(Action(server=observation.mask.long().argmax(-1)))

    play(4)
    begins = torch.tensor([True, False, True, True, False, False])
    before = env._observe()
    after = env.reset(begins)
    for name in ("device", "pair", "server"):
        assert torch.equal(getattr(after, name)[~begins], getattr(before, name)[~begins])
    play(env.last_slot - 4)
    # Three networks ended together: one call.
    assert len(masks) == 2
    assert torch.equal(masks[1], ~begins)


def test_validating_parameters_of_another_iteration_is_a_bug(
    make_env: MakeEnv, tmp_path: Path
) -> None:
    validated: list[dict[str, torch.Tensor]] = []
    stored: list[dict[str, torch.Tensor]] = []

    def validate(controller: Controller) -> dict[str, float]:
        weights = controller.actor.state_dict()  # type: ignore[attr-defined]
        validated.append({key: value.clone() for key, value in weights.items()})
        return {"e2e_latency_s": 10.0 - len(validated)}

    def report(iteration: int, metrics: object) -> None:
        stored.append(checkpoint.load(tmp_path / "checkpoint.pt")["state"]["actor"])

    steps = SMALL.rollout_slots * 3
    training = TrainingConfig(env_steps=3 * steps, validate_every=1, checkpoint_every=1)
    env = make_env(ControlConfig(draft_length=4))
    train(env, SMALL, training, tmp_path, seed=0, validate=validate, report=report)
    assert len(validated) == len(stored) == 3
    for shown, kept in zip(validated, stored, strict=True):
        assert all(torch.equal(shown[key], kept[key]) for key in shown)
    assert any(not torch.equal(validated[0][key], validated[1][key]) for key in validated[0])


def test_best_score_that_is_a_lucky_episode_and_not_a_mean_is_a_bug(
    make_env: MakeEnv, tmp_path: Path
) -> None:
    # One validation has the luckiest episode, another the best mean: the mean decides.
    episodes = iter([np.array([1.0, 19.0]), np.array([6.0, 8.0]), np.array([2.0, 16.0])])
    means: list[float] = []

    def validate(controller: Controller) -> dict[str, float]:
        means.append(float(mean_interval(next(episodes), np.arange(2)).mean))
        return {"e2e_latency_s": means[-1]}

    seen: list[float] = []
    training = TrainingConfig(env_steps=3 * SMALL.rollout_slots * 3, validate_every=1)
    train(
        make_env(ControlConfig(draft_length=4)),
        SMALL,
        training,
        tmp_path,
        seed=0,
        validate=validate,
        report=lambda iteration, metrics: seen.append(metrics["eval/best_e2e_latency_s"]),
    )
    assert means == [10.0, 7.0, 9.0]
    assert seen == [10.0, 7.0, 7.0]


def test_an_interval_that_changes_when_asked_again_is_a_bug() -> None:
    rng = np.random.default_rng(0)
    values, other, world = rng.normal(size=40), rng.normal(size=40), np.arange(40) % 8
    np.random.seed(1)
    first = mean_interval(values, world), paired_difference(values, other, world)
    np.random.seed(2)
    assert first == (mean_interval(values, world), paired_difference(values, other, world))


@pytest.mark.parametrize("view", ["device", "network"])
def test_one_legal_server_that_makes_losses_infinite_is_a_bug(
    make_env: MakeEnv, every_head: ControlConfig, view: str
) -> None:
    env = make_env(every_head)
    learner = MappoLearner(SMALL, env, view, seed=0)  # type: ignore[arg-type]
    observe = env._observe

    def one_legal() -> Observation:
        observation = observe()
        observation.mask[:] = False
        observation.mask[..., 1] = True
        return observation

    env._observe = one_legal  # type: ignore[method-assign]
    learner.start()
    learner.collect()
    metrics = learner.update(0.0)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["train/entropy_server"] == 0
    assert all(bool(p.isfinite().all()) for p in learner.actor.parameters())
