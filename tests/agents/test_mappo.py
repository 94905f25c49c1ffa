"""The learner: losses, masks, and learning where the best policy is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from agents.device_reward import device_reward
from agents.mappo import MappoLearner, normalise_advantage
from agents.network import NetworkConfig
from agents.on_policy import MappoConfig
from agents.rollout import Batch
from envs.action import Action, ControlConfig
from envs.batched import BatchedEnv, Step
from envs.observation import View
from uara.errors import UserError

MakeEnv = Callable[..., BatchedEnv]
SMALL = MappoConfig(network=NetworkConfig(hidden=16), rollout_slots=6, stagger=False, epochs=2)


def _batch(learner: MappoLearner) -> Batch:
    """Collect a rollout and prepare its rows."""
    learner.start()
    learner.collect()
    assert learner._rollout is not None
    return learner._prepare(*learner._rollout)[0]


@pytest.mark.parametrize("view", ["device", "network"])
@pytest.mark.parametrize(
    ("shares", "tolerance"),
    # The log-gammas of a Beta law are about 20, which float32 rounds at 2e-6.
    [("square_root", 1e-6), ("learned", 2e-5)],
)
def test_before_the_first_step_every_joint_ratio_is_one(
    make_env: MakeEnv, view: View, shares: Literal["square_root", "learned"], tolerance: float
) -> None:
    control = ControlConfig(bandwidth=shares, draft_length="learned")
    learner = MappoLearner(SMALL, make_env(control), view, seed=1)
    losses = learner.losses(_batch(learner))
    assert float(losses.logged["train/ratio_error"]) < tolerance
    assert float(losses.logged["train/approx_kl"]) < 1e-6
    assert float(losses.logged["train/clip_fraction"]) == 0


@pytest.mark.parametrize("view", ["device", "network"])
def test_devices_without_a_request_give_the_policy_no_gradient(
    make_env: MakeEnv, every_head: ControlConfig, view: View
) -> None:
    learner = MappoLearner(SMALL, make_env(every_head), view, seed=1)
    batch = _batch(learner)
    idle = ~batch.observation.active
    assert idle.any()
    assert batch.observation.active.any()

    def gradient(batch: Batch) -> torch.Tensor:
        learner.actor.zero_grad()
        learner.losses(batch).actor.backward()
        return torch.cat([p.grad.flatten() for p in learner.actor.parameters()])  # type: ignore[union-attr]

    before = gradient(batch)
    pair = batch.observation.pair.clone()
    pair[idle] += 1
    changed = dataclasses.replace(
        batch,
        observation=dataclasses.replace(batch.observation, pair=pair),
        log_prob=torch.where(idle, batch.log_prob - 1, batch.log_prob),
        advantage=torch.where(idle, 5.0, batch.advantage),
    )
    torch.testing.assert_close(gradient(changed), before)
    assert before.abs().max() > 0


def test_advantages_are_normalised_over_devices_with_a_request_only() -> None:
    draw = torch.Generator().manual_seed(0)
    advantage = 3 + 2 * torch.randn(30, 4, 5, generator=draw)
    active = torch.rand(30, 4, 5, generator=draw) < 0.5
    normal = normalise_advantage(advantage, active)
    assert float(normal[active].mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal[active].std()) == pytest.approx(1, abs=1e-2)
    assert (normal[~active] == 0).all()
    disturbed = torch.where(active, advantage, 1e6)
    assert torch.equal(normalise_advantage(disturbed, active)[active], normal[active])


def test_devices_share_the_reward_of_the_network_as_told() -> None:
    reward = torch.tensor([-6.0, -1.0])
    load = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    own = device_reward(reward, load, 0.0)
    torch.testing.assert_close(own.sum(1), reward)
    torch.testing.assert_close(own[0], torch.tensor([-2.0, -4.0, 0.0]))
    torch.testing.assert_close(device_reward(reward, load, 1.0), reward[:, None].expand(2, 3))
    half = device_reward(reward, load, 0.5)
    torch.testing.assert_close(half[0], torch.tensor([-4.0, -5.0, -3.0]))


def test_value_clipping_never_lowers_the_loss(make_env: MakeEnv, every_head: ControlConfig) -> None:
    learner = MappoLearner(SMALL, make_env(every_head), "device", seed=1)
    batch = _batch(learner)
    moved = dataclasses.replace(batch, value=batch.value + torch.randn(batch.value.shape))
    plain = learner.losses(moved).critic
    learner.config = SMALL.model_copy(update={"value_clip": 0.2})
    assert learner.losses(moved).critic > plain


def test_the_update_moves_in_small_steps_and_stops_at_the_divergence(
    make_env: MakeEnv, every_head: ControlConfig
) -> None:
    config = SMALL.model_copy(
        update={"epochs": 50, "learning_rate": 3e-2, "target_kl": 0.01, "num_minibatches": 3}
    )
    learner = MappoLearner(config, make_env(every_head), "device", seed=1)
    learner.start()
    learner.collect()
    metrics = learner.update(0.0)
    assert 1 <= metrics["train/epochs"] < 50
    assert metrics["train/first_ratio_error"] < 2e-5
    assert metrics["train/approx_kl"] > 0.01


def test_annealing_ends_at_no_learning(make_env: MakeEnv, every_head: ControlConfig) -> None:
    config = SMALL.model_copy(update={"anneal": True})
    learner = MappoLearner(config, make_env(every_head), "device", seed=1)
    learner.start()
    learner.collect()
    before = [p.clone() for p in learner.actor.parameters()]
    assert learner.update(1.0)["train/learning_rate"] == 0
    after = learner.actor.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_truncated_episodes_bootstrap_from_their_own_last_observation(
    make_env: MakeEnv, every_head: ControlConfig
) -> None:
    config = SMALL.model_copy(update={"rollout_slots": 20})
    learner = MappoLearner(config, make_env(every_head), "device", seed=1)
    learner.start()
    learner.collect()
    assert learner._rollout is not None
    rollout, _ = learner._rollout
    cut = rollout.truncated.any(1).nonzero().flatten().tolist()
    assert cut == [15]
    assert not rollout.terminated.any()
    # A fresh episode has no request, the one that was cut has; their values differ.
    assert (rollout.final_value[15] != rollout.value[16]).all()


class _Bandit(BatchedEnv):
    """Pays each slot for four choices whose best is known; nothing carries over."""

    def step(self, action: Action) -> Step:
        active, strongest = self.state.has_request, self.state.gain.argmax(-1)
        assert action.server is not None
        assert action.bandwidth is not None
        assert action.power is not None
        assert action.draft_length is not None
        cost = (
            (action.server != strongest).float()
            + 4 * (action.bandwidth - 0.8).square()
            + 4 * (action.power - 0.6).square()
            + 0.3 * (action.draft_length - 7).abs()
        )
        step = super().step(action)
        return dataclasses.replace(step, reward=-(cost * active).sum(1))


def test_all_four_heads_learn_choices_whose_best_is_known(
    make_env: MakeEnv, every_head: ControlConfig
) -> None:
    env = make_env(
        every_head, gain_db=[[-85, -100], [-95, -88]], num_networks=32, arrivals_per_s=1.0
    )
    env.__class__ = _Bandit
    config = MappoConfig(
        network=NetworkConfig(hidden=16, initial_stay_logit=0.0),
        rollout_slots=16,
        discount=0.0,
        learning_rate=3e-3,
        stagger=False,
        target_kl=None,
    )
    learner = MappoLearner(config, env, "device", seed=0)
    learner.start()
    for _ in range(16):
        learner.collect()
        learner.update(0.0)
    observation = env.reset()
    for _ in range(8):
        with torch.no_grad():
            action = learner.actor.act(observation, None).action
        active = observation.active
        assert action.server is not None
        right = action.server == env.state.gain.argmax(-1)
        if active.any():
            assert right[active].float().mean() > 0.95
            for head, best in (("bandwidth", 0.8), ("power", 0.6), ("draft_length", 7)):
                played = getattr(action, head)[active].float().mean()
                assert float(played) == pytest.approx(best, rel=0.25), head
        observation = env.step(action).observation
    assert active.any()


def test_rewards_of_their_own_need_values_of_their_own() -> None:
    with pytest.raises(ValidationError, match=r"reward_sharing is 0\.5 with critic 'network'"):
        MappoConfig(reward_sharing=0.5, critic="network")


def test_nothing_to_learn_is_refused(make_env: MakeEnv) -> None:
    env = make_env(ControlConfig(association="max_sinr", draft_length=4))
    with pytest.raises(UserError, match="leaves nothing to learn"):
        MappoLearner(SMALL, env, "device", seed=0)


def test_heads_can_be_learned_without_the_association(make_env: MakeEnv) -> None:
    control = ControlConfig(association="max_sinr", draft_length="learned", bandwidth="learned")
    learner = MappoLearner(SMALL, make_env(control), "device", seed=0)
    learner.start()
    learner.collect()
    metrics = learner.update(0.0)
    assert metrics["train/entropy_draft_length"] > 0
    assert "train/entropy_server" not in metrics
