"""MASAC: exact expectations, whose action each estimate uses, targets, temperatures, warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from agents.action_value import ActionValue
from agents.heads import Beta, Categorical
from agents.masac import MasacConfig, MasacLearner
from agents.network import CandidateLaws, FeatureSizes, NetworkConfig
from agents.policy import load_policy
from agents.replay import ReplayConfig
from agents.soft_values import draw, draw_uniformly, entropies, expected_value
from envs.action import Action, ControlConfig
from envs.batched import BatchedEnv
from envs.observation import Observation, schema
from tests.agents.toys import Constant
from uara.prediction import Physics

MakeEnv = Callable[..., BatchedEnv]
MakeObservation = Callable[..., Observation]
HEADS = ("server", "bandwidth", "power", "draft_length")
SMALL = MasacConfig(
    network=NetworkConfig(hidden=16),
    rollout_slots=4,
    stagger=False,
    warmup=13,
    policy_start=0,
    gradient_steps=2,
    batch_size=16,
    replay=ReplayConfig(capacity=60),
)


@pytest.fixture
def learner(make_env: MakeEnv, every_head: ControlConfig) -> MasacLearner:
    learner = MasacLearner(SMALL, make_env(every_head), "device", seed=1)
    learner.start()
    return learner


def _critic(seed: int = 0) -> ActionValue:
    torch.manual_seed(seed)
    sizes = FeatureSizes.of(schema())
    return ActionValue(sizes, NetworkConfig(hidden=16), HEADS, 8).double()  # type: ignore[arg-type]


def _double(observation: Observation) -> Observation:
    changed = {n: getattr(observation, n).double() for n in ("device", "pair", "server")}
    return replace(observation, **changed)


def _action(observation: Observation, seed: int = 0) -> Action:
    drawing = torch.Generator().manual_seed(seed)
    return draw_uniformly(HEADS, observation.mask, 9, drawing)  # type: ignore[arg-type]


# Two choices (of server) with one continuous value (power): Q = a - b (u - c)^2 + joint terms.
LEVEL = torch.tensor([0.3, 0.1], dtype=torch.float64)
CURVE = torch.tensor([2.0, 1.0], dtype=torch.float64)
PEAK = torch.tensor([0.7, 0.2], dtype=torch.float64)
WARMTH = {"server": 0.3, "power": 0.05}


def _toy_laws(raw: torch.Tensor, count: int) -> CandidateLaws:
    """Read two logits and two pairs of concentrations (6,), repeated for `count` networks."""
    wide = raw.expand(count, 1, 6)
    return CandidateLaws(
        server=Categorical.of(wide[..., :2]),
        bandwidth=None,
        power=Beta.of(wide[..., 2:].unflatten(-1, (2, 2))),
        draft_length=None,
    )


def _closed_form(raw: torch.Tensor) -> torch.Tensor:
    """Compute V of the 2 x 1 toy from the moments of Beta laws and the entropies of both heads."""
    probability = torch.softmax(raw[:2], 0)
    alpha, beta = (1 + torch.nn.functional.softplus(raw[2:].view(2, 2))).unbind(-1)
    law = torch.distributions.Beta(alpha, beta)
    worth = LEVEL - CURVE * (law.variance + (law.mean - PEAK).square())
    value = (probability * (worth + WARMTH["power"] * law.entropy())).sum()
    return value - WARMTH["server"] * (probability * probability.log()).sum()


def test_hybrid_gradient_is_that_of_finite_differences_of_the_closed_form() -> None:
    raw = torch.tensor([0.4, -0.2, 1.0, -0.5, 0.3, 1.5], dtype=torch.float64)
    step = 1e-5
    differences = torch.stack(
        [
            (_closed_form(raw + step * unit) - _closed_form(raw - step * unit)) / (2 * step)
            for unit in torch.eye(6, dtype=torch.float64)
        ]
    )
    learned = raw.clone().requires_grad_(True)
    laws = _toy_laws(learned, 20_000)
    shares = draw(laws, torch.Generator().manual_seed(0)).shares.squeeze(-1)
    value = (LEVEL - CURVE * (shares - PEAK).square()).unsqueeze(-1)
    objective = expected_value(laws, value)
    for head, entropy in entropies(laws).items():
        objective = objective + WARMTH[head] * entropy
    objective.mean().backward()
    assert learned.grad is not None
    assert float(objective.detach().mean()) == pytest.approx(float(_closed_form(raw)), abs=4e-3)
    torch.testing.assert_close(learned.grad, differences, atol=6e-3, rtol=0.04)


def test_expectation_over_lengths_and_servers_is_the_sum_over_all_of_them() -> None:
    drawing = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=drawing)
    mask = torch.rand(2, 3, 4, generator=drawing) < 0.6
    mask[..., 0] = True
    lengths = torch.randn(2, 3, 4, 5, generator=drawing)
    value = torch.randn(2, 3, 4, 5, generator=drawing)
    laws = CandidateLaws(Categorical.of(logits, mask), None, None, Categorical.of(lengths))
    chance = logits.masked_fill(~mask, -math.inf).softmax(-1)
    by_hand = torch.zeros(2, 3)
    for server in range(4):
        for length in range(5):
            given = lengths.softmax(-1)[..., server, length]
            by_hand += chance[..., server] * given * value[..., server, length]
    torch.testing.assert_close(expected_value(laws, value), by_hand)
    worst = torch.where(mask.unsqueeze(-1), value, 1e6)
    torch.testing.assert_close(expected_value(laws, worst), by_hand)


def test_a_device_hears_what_others_do_and_not_its_own_slot(
    make_observation: MakeObservation,
) -> None:
    critic, observation = _critic(), _double(make_observation(2, 3, 4))
    observation.active[:] = True
    observation.mask[:] = True
    shares = torch.rand(2, 3, 4, 2, dtype=torch.float64)
    action = _action(observation)
    before = critic.candidates(observation, action, shares)
    for head in HEADS:
        entry = getattr(action, head).clone()
        entry[:, 1] = 1 - entry[:, 1] if head in ("bandwidth", "power") else (entry[:, 1] + 1) % 4
        after = critic.candidates(observation, replace(action, **{head: entry}), shares)
        torch.testing.assert_close(after[:, 1], before[:, 1])
        for other in (0, 2):
            assert not torch.allclose(after[:, other], before[:, other]), head


def test_the_taken_action_is_valued_as_the_candidate_that_it_is(
    make_observation: MakeObservation,
) -> None:
    critic, observation = _critic(), _double(make_observation(3, 5, 4))
    action = _action(observation)
    assert action.server is not None
    assert action.draft_length is not None
    own = torch.stack((action.bandwidth, action.power), -1).double()  # type: ignore[arg-type]
    values = critic.candidates(observation, action, own.unsqueeze(2).expand(3, 5, 4, 2))
    index = action.server[..., None, None].expand(3, 5, 1, 9)
    chosen = values.gather(2, index).squeeze(2).gather(2, action.draft_length.unsqueeze(-1))
    active = observation.active
    torch.testing.assert_close(
        critic.taken(observation, action)[active], chosen.squeeze(-1)[active]
    )


def test_idle_devices_choices_change_no_value(make_observation: MakeObservation) -> None:
    critic, observation = _critic(), _double(make_observation(3, 5, 4))
    action, other = _action(observation), _action(observation, seed=1)
    active = observation.active
    mixed = {h: torch.where(active, getattr(action, h), getattr(other, h)) for h in HEADS}
    before, after = critic.taken(observation, action), critic.taken(observation, Action(**mixed))
    torch.testing.assert_close(after[active], before[active])
    assert (~active).any()


@pytest.mark.parametrize(("devices", "servers"), [(1, 1), (2, 5), (50, 3)])
def test_the_critic_has_one_size_for_any_number_of_devices_and_servers(
    make_observation: MakeObservation, devices: int, servers: int
) -> None:
    observation = _double(make_observation(2, devices, servers))
    shares = torch.rand(2, devices, servers, 2, dtype=torch.float64)
    action = _action(observation)
    critic = _critic()
    assert critic.candidates(observation, action, shares).shape == (2, devices, servers, 9)
    order = torch.randperm(devices, generator=torch.Generator().manual_seed(0))
    permuted = replace(
        observation,
        **{n: getattr(observation, n)[:, order] for n in ("device", "pair", "mask", "active")},
    )
    moved = Action(**{h: getattr(action, h)[:, order] for h in HEADS})
    torch.testing.assert_close(
        critic.taken(permuted, moved), critic.taken(observation, action)[:, order]
    )


def test_targets_that_begin_apart_from_the_critics_are_a_bug_and_they_follow_by_the_step(
    learner: MasacLearner,
) -> None:
    pairs = list(zip(learner.targets.parameters(), learner.critics.parameters(), strict=True))
    assert all(torch.equal(target, online) for target, online in pairs)
    first, second = learner.critics.first, learner.critics.second
    assert not torch.equal(first.value_head.weight, second.value_head.weight)
    start = [target.clone() for target, _ in pairs]
    with torch.no_grad():
        for _, online in pairs:
            online += 1
    learner._follow()
    for (target, _), before in zip(pairs, start, strict=True):
        torch.testing.assert_close(target, before + SMALL.polyak, atol=1e-6, rtol=0)


def test_the_policy_moves_every_second_gradient_step_where_it_is_told_to(
    make_env: MakeEnv, every_head: ControlConfig
) -> None:
    config = SMALL.model_copy(update={"policy_delay": 2, "gradient_steps": 1, "warmup": 0})
    learner = MasacLearner(config, make_env(every_head), "device", seed=1)
    learner.start()
    moved = []
    for _ in range(6):
        learner.collect()
        before = [p.clone() for p in learner.actor.parameters()]
        learner.update(0.0)
        after = learner.actor.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
    assert moved == [False, True] * 3


def test_warm_up_that_covers_half_of_the_space_is_a_bug(learner: MasacLearner) -> None:
    observation = learner._observation
    assert observation is not None
    drawn = [learner._act(observation) for _ in range(400)]
    for head, ends in (("bandwidth", (0, 1)), ("power", (0, 1)), ("draft_length", (0, 8))):
        values = torch.stack([getattr(action, head) for action in drawn]).float()
        assert float(values.min()) == pytest.approx(ends[0], abs=0.01), head
        assert float(values.max()) == pytest.approx(ends[1], abs=0.01), head
        assert float(values.mean()) == pytest.approx(sum(ends) / 2, abs=0.05 * ends[1]), head
    served = torch.stack([action.server for action in drawn])  # type: ignore[arg-type]
    share = torch.nn.functional.one_hot(served, 3).float().mean(0)
    legal = observation.mask.float()
    torch.testing.assert_close(share, legal / legal.sum(-1, keepdim=True), atol=0.12, rtol=0)
    assert (share[~observation.mask] == 0).all()
    learner.collect()
    assert learner.update(0.0) == {}
    assert learner.env_steps == 12 < SMALL.warmup
    learner.collect()
    metrics = learner.update(0.0)
    assert metrics["train/updates_to_data"] == pytest.approx(2 / 12)


@pytest.mark.parametrize(("target", "sign"), [(10.0, 1), (-10.0, -1)])
def test_temperature_rises_below_the_target_entropy_and_falls_above(
    learner: MasacLearner, target: float, sign: int
) -> None:
    for _ in range(4):
        learner.collect()
    aims = SMALL.target_entropy.model_copy(update={"power": target})
    learner.config = SMALL.model_copy(update={"target_entropy": aims})
    before = learner.log_temperature["power"].item()
    learner.update(0.0)
    assert sign * (learner.log_temperature["power"].item() - before) > 0


def test_target_entropy_counts_the_legal_servers_of_each_device(learner: MasacLearner) -> None:
    mask = torch.tensor([[[True, True, True], [True, False, True], [False, True, False]]])
    target = learner._target_entropy("server", mask)
    expected = [SMALL.target_entropy.server * math.log(n) for n in (3, 2, 1)]
    torch.testing.assert_close(target, torch.tensor([expected]))
    length = learner._target_entropy("draft_length", mask)
    torch.testing.assert_close(length, torch.full((1, 3), 0.2 * math.log(9)))
    # Minus the dimension of one agent's action, however many agents there are.
    torch.testing.assert_close(learner._target_entropy("power", mask), torch.full((1, 3), -1.0))


class _Cut(Constant):
    """Shows the slot, so that the true last observation and the next first one differ."""

    def show(self, device: torch.Tensor, pair: torch.Tensor, server: torch.Tensor) -> None:
        device[..., 0] = float(self.slot)


@pytest.mark.parametrize("is_cut", [True, False])
def test_time_limit_treated_as_an_end_is_a_bug(
    is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"discount": 0.5, "reward_scale": 1.0, "warmup": 0, "batch_size": 4000}
    env = _Cut(8)
    env.ends_truncated = is_cut
    config = SMALL.model_copy(update=changes)
    learner = MasacLearner(config, env, "device", seed=0)  # type: ignore[arg-type]
    # Slot k is worth k: what follows slots 0 to 3 are slots 1 to 4, never the 0 of a new episode.
    monkeypatch.setattr(learner, "soft_value", lambda observation: observation.device[..., 0])
    learner.start()
    for _ in range(2):
        learner.collect()
    following = torch.tensor([1.0, 2.0, 3.0, 4.0 if is_cut else 0.0])
    assert learner.update(0.0)["train/value_target"] == pytest.approx(
        float((1 + 0.5 * following).mean()), abs=0.03
    )


def test_a_trained_policy_is_loaded_like_any_other(
    learner: MasacLearner, physics: Physics, tmp_path: object
) -> None:
    path = tmp_path / "policy.pt"  # type: ignore[operator]
    learner.save_policy(path)
    controller = load_policy(path, physics)
    assert controller.name == "masac"


def test_temperatures_out_of_their_limits_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"initial_temperature is 2, min_temperature"):
        MasacConfig(initial_temperature=2.0)
