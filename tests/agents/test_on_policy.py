"""What sets IPPO, the bandit and imitation apart from MAPPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from agents.bandit import BanditLearner, expected_e2e_s, realised_remaining_s
from agents.imitation import Teacher, action_of
from agents.mappo import MappoLearner
from agents.network import Critic, FeatureSizes, NetworkConfig
from agents.on_policy import BanditConfig, ImitateConfig, IppoConfig, MappoConfig
from envs.action import ControlConfig, to_decision
from envs.batched import BatchedEnv
from envs.observation import Observation, observe, schema
from uara.control.allocation import AllocationConfig
from uara.control.objective import total_remaining_s
from uara.control.registry import make_controller
from uara.errors import UserError
from uara.network import NetworkState
from uara.prediction import Physics

MakeEnv = Callable[..., BatchedEnv]
SMALL = NetworkConfig(hidden=16)


def test_a_critic_of_its_own_hears_of_no_other_device(
    make_observation: Callable[..., Observation],
) -> None:
    critic = Critic(FeatureSizes.of(schema()), SMALL, "own")
    observation = make_observation(2, 4, 3)
    changed = replace(
        observation,
        device=observation.device.index_add(1, torch.tensor([3]), torch.ones(2, 1, 13)),
        pair=observation.pair.index_add(1, torch.tensor([3]), torch.ones(2, 1, 3, 10)),
        active=~observation.active,
    )
    before, after = critic(observation), critic(changed)
    assert before.shape == (2, 4)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] != before[:, 3]).all()


def test_ippo_runs_with_one_value_per_device(make_env: MakeEnv, every_head: ControlConfig) -> None:
    config = IppoConfig(network=SMALL, rollout_slots=6, stagger=False, epochs=1)
    learner = MappoLearner(config, make_env(every_head), "device", seed=1)
    learner.start()
    learner.collect()
    assert learner._rollout is not None
    assert learner._rollout[0].value.shape == (6, 3, 4)
    assert learner.update(0.0)["train/first_ratio_error"] < 2e-5


def test_predicted_reward_of_a_bandit_is_the_objective_of_the_controllers(
    make_env: MakeEnv, physics: Physics
) -> None:
    config = BanditConfig(network=SMALL, rollout_slots=6, stagger=False)
    env = make_env(ControlConfig(draft_length=4), arrivals_per_s=1.0)
    learner = BanditLearner(config, env, "device", seed=1)
    learner.start()
    played: list[tuple[NetworkState, torch.Tensor]] = []
    step = env.step

    def watched(action: object) -> object:
        state = env.state
        result = step(action)  # type: ignore[arg-type]
        played.append((state, total_remaining_s(state, result.decision, physics)))
        return result

    env.step = watched  # type: ignore[method-assign, assignment]
    learner.collect()
    assert learner._rollout is not None
    reward = learner._rollout[0].reward
    assert reward.shape == (6, 3, 1)
    by_hand = torch.stack([seconds for _, seconds in played]) / (20 * 4)
    torch.testing.assert_close(-reward.squeeze(-1), by_hand)
    assert (by_hand > 0).any()
    # Nothing is discounted to a slot: what is to be learned is its own reward.
    batch, _ = learner._prepare(*learner._rollout)
    target = learner.value_norm.denormalise(batch.target)
    torch.testing.assert_close(target, reward.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_realised_time_looks_up_when_the_request_was_answered() -> None:
    # One network, two devices, five slots of 1 s; the episode is cut after slot 2.
    age = torch.tensor([[0.0, 5], [1, 6], [2, 7], [0, 0], [1, 1]])[:, None]
    finished = torch.tensor([[0, 0], [1, 0], [0, 0], [0, 0], [0, 1]], dtype=torch.bool)[:, None]
    e2e = torch.tensor([[0.0, 0], [1.5, 0], [0, 0], [0, 0], [0, 1.25]])[:, None]
    ended = torch.tensor([False, False, True, False, False])[:, None]
    expected = torch.tensor([[90.0, 90], [90, 90], [8, 20], [90, 90], [9, 90]])[:, None]
    remaining = realised_remaining_s(
        age_s=age, finished=finished, e2e_s=e2e, ended=ended, expected_s=expected
    )
    by_hand = [[1.5, 15], [0.5, 14], [6, 13], [9, 1.25], [8, 0.25]]
    torch.testing.assert_close(remaining[:, 0], torch.tensor(by_hand))


def test_expected_latency_is_age_and_the_remaining_time_at_the_serving_server(
    make_state: Callable[..., NetworkState], physics: Physics
) -> None:
    state = make_state(3, 5, 3, seed=2)
    observation = observe(state, physics)
    expected = expected_e2e_s(observation)
    remaining = [feature.name for feature in schema().pair].index("remaining_s")
    for network in range(3):
        for device in range(5):
            if not state.has_request[network, device]:
                continue
            row = torch.expm1(3 * observation.pair[network, device, :, remaining])
            server = int(state.server[network, device])
            least = row[server] if server >= 0 else row[observation.mask[network, device]].min()
            age = state.age_s[network, device]
            torch.testing.assert_close(expected[network, device], age + least, atol=1e-3, rtol=1e-4)


def test_a_bandit_of_realised_times_runs(make_env: MakeEnv, every_head: ControlConfig) -> None:
    config = BanditConfig(network=SMALL, rollout_slots=20, stagger=False, reward="realised")
    learner = BanditLearner(config, make_env(every_head, arrivals_per_s=1.0), "device", seed=1)
    learner.start()
    learner.collect()
    assert learner._rollout is not None
    rollout = learner._rollout[0]
    assert rollout.reward.shape == (20, 3, 4)
    assert (rollout.reward[rollout.observation.active] < 0).float().mean() > 0.9
    assert (rollout.reward[~rollout.observation.active] == 0).all()
    learner.update(0.0)


@pytest.mark.parametrize("bandwidth", ["equal", "square_root"])
def test_a_decision_written_as_an_action_decides_the_same(
    make_state: Callable[..., NetworkState], physics: Physics, bandwidth: str
) -> None:
    state = make_state(4, 6, 3, seed=1)
    allocation = AllocationConfig(bandwidth=bandwidth, power="open_loop", draft_length=3)  # type: ignore[arg-type]
    decision = make_controller("greedy_latency", allocation, physics).decide(state)
    control = ControlConfig(
        association="learned", bandwidth="learned", power="learned", draft_length="learned"
    )
    again = to_decision(action_of(decision, state, control.learned), state, control, physics)
    active = state.has_request
    assert torch.equal(again.server[active], decision.server[active])
    assert torch.equal(again.draft_length[active], decision.draft_length[active])
    torch.testing.assert_close(again.power_w[active], decision.power_w[active], atol=1e-4, rtol=0)
    if bandwidth == "equal":
        torch.testing.assert_close(again.bandwidth_hz[active], decision.bandwidth_hz[active])
    else:  # a weight spans a factor of 400, then it is cut
        ratio = again.bandwidth_hz[active] / decision.bandwidth_hz[active].clamp_min(1e-3)
        assert float(ratio.median()) == pytest.approx(1, abs=0.05)


def test_a_copied_controller_is_chosen_like_it_and_then_improved_on(make_env: MakeEnv) -> None:
    env = make_env(ControlConfig(draft_length=4), num_networks=16, arrivals_per_s=0.5)
    config = MappoConfig(
        network=NetworkConfig(hidden=16, initial_stay_logit=0.0),
        rollout_slots=16,
        stagger=False,
        learning_rate=1e-2,
        anneal=False,
        imitate=ImitateConfig(controller="max_sinr", iterations=5),
    )
    learner = MappoLearner(config, env, "device", seed=0)
    learner.start()
    for _ in range(5):
        assert learner._is_imitating()
        learner.collect()
        learner.update(0.0)
    assert not learner._is_imitating()
    right, count = 0.0, 0.0
    for _ in range(8):
        assert learner._observation is not None
        with torch.no_grad():
            action = learner.actor.act(learner._observation, None).action
        state = env.state
        reachable = torch.where(state.reachable, state.gain, 0.0)
        hit = (action.server == reachable.argmax(-1)) & state.has_request
        right, count = right + float(hit.sum()), count + float(state.has_request.sum())
        learner._observation = env.step(action).observation
    assert right / count > 0.9
    learner.collect()
    assert learner.update(0.0)["train/first_ratio_error"] < 2e-5


def test_the_teacher_drives_its_share_of_the_networks(make_env: MakeEnv) -> None:
    env = make_env(ControlConfig(draft_length=4), num_networks=4, arrivals_per_s=1.0)
    teacher = Teacher(ImitateConfig(controller="max_sinr", iterations=1), env)
    env.reset()
    env.step(MappoLearner(MappoConfig(), env, "device", 0)._act(env._observe()))
    teacher.begin()
    learner_says = (env.state.gain.argmax(-1) + 1) % 3
    from envs.action import Action

    label, played = teacher.lead(env.state, Action(server=learner_says))
    assert played.server is not None
    assert label.server is not None
    assert torch.equal(played.server[:2], label.server[:2])
    assert torch.equal(played.server[2:], learner_says[2:])
    with pytest.raises(UserError, match="unknown"):
        Teacher(ImitateConfig(controller="nobody", iterations=1), env)
