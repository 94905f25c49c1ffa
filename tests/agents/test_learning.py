"""Learners reach the known optimum of small problems, or miss it where they must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from agents.learners import LearnerConfig, make_learner
from agents.masac import MasacConfig, TargetEntropyConfig
from agents.network import NetworkConfig
from agents.on_policy import BanditConfig, EntropyConfig, IppoConfig, MappoConfig
from agents.replay import ReplayConfig
from agents.sb3 import Sb3PpoConfig
from agents.sb3_sac import Sb3SacConfig
from envs.observation import View
from tests.agents.toys import Congestion, Split, Stampede, Toy, TwoSlots

NETWORK = NetworkConfig(hidden=16, initial_stay_logit=0.0)
CLIPPED: dict[str, Any] = {
    "network": NETWORK,
    "rollout_slots": 8,
    "num_minibatches": 1,
    "stagger": False,
    "learning_rate": 1e-2,
    "target_kl": None,
    "anneal": False,
    "entropy": EntropyConfig(server=0.0),
}
MAPPO = MappoConfig(**CLIPPED)
IPPO = IppoConfig(**CLIPPED)
BANDIT = BanditConfig(**CLIPPED)
MASAC = MasacConfig(
    network=NETWORK,
    rollout_slots=4,
    stagger=False,
    warmup=512,
    policy_start=12,
    gradient_steps=12,
    batch_size=64,
    replay=ReplayConfig(capacity=2048),
    polyak=0.1,
    actor_rate=1e-2,
    critic_rate=1e-2,
    anneal=False,
    reward_scale=1.0,
    initial_temperature=0.01,
    target_entropy=TargetEntropyConfig(bandwidth=-2.0),
)


def _learned(
    config: LearnerConfig, toy: Toy, iterations: int, view: View = "device"
) -> Callable[..., Any]:
    """Train on a toy and return how it then chooses when nothing is drawn."""
    learner = make_learner(config, toy, view, 0)  # type: ignore[arg-type]
    learner.start()
    for _ in range(iterations):
        learner.collect()
        learner.update(0.0)
    if hasattr(learner, "actor"):
        actor = learner.actor
        with torch.no_grad():
            return lambda observation: actor.act(observation, None).action
    return _flat_choice(learner)


def _flat_choice(learner: Any) -> Callable[..., Any]:
    """Choose with a model of stable-baselines3."""
    from envs.flat import flatten_network

    def act(observation: Any) -> Any:
        flat = flatten_network(observation).numpy()
        values, _ = learner.model.predict(flat, deterministic=True)
        return learner.vector.actions.to_action(values)

    return act


@pytest.mark.parametrize(
    ("config", "iterations"),
    [
        pytest.param(MAPPO, 12, id="mappo"),
        pytest.param(IPPO, 12, id="ippo"),
        pytest.param(MASAC, 16, id="masac"),
        pytest.param(MAPPO.model_copy(update={"num_minibatches": 4}), 12, id="4 minibatches",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_congestion_is_shared_as_enumeration_says(config: LearnerConfig, iterations: int) -> None:
    toy = Congestion()
    act = _learned(config, toy, iterations)
    assert toy.play(act) == pytest.approx(toy.optimum(), abs=1e-6)


@pytest.mark.parametrize(
    ("config", "iterations", "best"),
    [
        pytest.param(BANDIT, 10, 1.0, id="bandit is myopic"),
        pytest.param(MAPPO, 12, 3.0, id="mappo", marks=pytest.mark.slow),
        pytest.param(IPPO, 12, 3.0, id="ippo", marks=pytest.mark.slow),
        pytest.param(MASAC, 24, 3.0, id="masac", marks=pytest.mark.slow),
    ],
)
def test_choice_that_pays_later_is_found_by_those_that_look_ahead(
    config: LearnerConfig, iterations: int, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(config, BanditConfig):
        # The toy has no requests to predict: a slot is worth what it pays.
        monkeypatch.setattr(
            "agents.bandit.BanditLearner._slot_reward",
            lambda self, state, step: step.reward.unsqueeze(1),
        )
    toy = TwoSlots()
    assert toy.play(_learned(config, toy, iterations)) == pytest.approx(best)


@pytest.mark.parametrize(
    ("config", "iterations"),
    [
        pytest.param(MAPPO, 30, id="mappo", marks=pytest.mark.slow),
        pytest.param(IPPO, 30, id="ippo", marks=pytest.mark.slow),
        pytest.param(MASAC, 40, id="masac", marks=pytest.mark.slow),
    ],
)
def test_split_of_a_band_is_that_of_the_closed_form(config: LearnerConfig, iterations: int) -> None:
    toy = Split()
    lost = toy.optimum() - toy.play(_learned(config, toy, iterations))
    equal = toy.optimum() - 0.0  # an equal split pays 2 - 20 / 10
    assert 0 <= lost < 0.15 * equal


@pytest.mark.parametrize(
    ("coordination", "best"), [("none", -1.0), ("proposal", -1.0), ("sequence", 0.0)]
)
def test_devices_that_look_alike_stampede_unless_they_choose_in_sequence(
    coordination: str, best: float
) -> None:
    network = NETWORK.model_copy(update={"coordination": coordination})
    config = MAPPO.model_copy(update={"network": network})
    toy = Stampede()
    # What is alike proposes alike: only turns tell the two apart where nothing is drawn.
    assert toy.play(_learned(config, toy, 10, "network")) == pytest.approx(best)


@pytest.mark.parametrize(
    ("config", "iterations"),
    [
        pytest.param(
            Sb3PpoConfig(rollout_slots=8, batch_size=256, hidden=16, learning_rate=1e-2),
            14,
            id="sb3_ppo",
        ),
        pytest.param(
            Sb3SacConfig(
                rollout_slots=4, gradient_steps=8, batch_size=64, warmup=512, capacity=4096,
                hidden=64, learning_rate=1e-2, polyak=0.05,
            ),
            60,
            marks=pytest.mark.slow,
            id="sb3_sac",
        ),
    ],
)  # fmt: skip
def test_stable_baselines3_shares_congestion_as_well(
    config: LearnerConfig, iterations: int
) -> None:
    toy = Congestion()
    lost = toy.optimum() - toy.play(_learned(config, toy, iterations))
    assert lost < 0.1  # all on the favourite server lose 0.42
