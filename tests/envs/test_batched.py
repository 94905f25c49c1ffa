"""The batched environment: return is latency, resets by mask, determinism, resume."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from envs import Action, BatchedEnv, ControlConfig, EnvRecipe, Observation, RewardConfig, Step
from uara.errors import UserError
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.world.batteries import BatteryConfig
from uara.world.world import World

QUICK = ControlConfig(draft_length=3)
RULES = ControlConfig(association="max_sinr", draft_length=3)


def same(a: Observation, b: Observation) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Observation))


def actions(env: BatchedEnv, generator: torch.Generator) -> Action:
    shape = (env.num_networks, env.world.num_devices)
    return Action(server=torch.randint(env.world.num_servers, shape, generator=generator))


def play(env: BatchedEnv, slots: int, seed: int = 7) -> list[Step]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(actions(env, generator)) for _ in range(slots)]


def test_return_of_a_drained_episode_is_minus_the_sum_of_latencies(recipe: EnvRecipe) -> None:
    recipe = replace(recipe, control=RULES, drain=True, reward=RewardConfig(normaliser_s=1.0))
    env = recipe.batched(4, seed=1, auto_reset=False)
    env.reset()
    total, e2e_s = torch.zeros(4), torch.zeros(4)
    running = torch.ones(4, dtype=torch.bool)
    while running.any():
        step = env.step(Action())
        total += torch.where(running, step.reward, 0.0)
        e2e_s += torch.where(running, step.outcome.e2e_s.sum(1), 0.0)
        assert not step.truncated.any()
        running &= ~step.terminated
    assert (e2e_s > 0).all()
    torch.testing.assert_close(total, -e2e_s, rtol=1e-4, atol=1e-3)


def test_default_normaliser_makes_one_of_a_slot_with_a_request_at_each_device(
    recipe: EnvRecipe,
) -> None:
    env = replace(recipe, control=QUICK).batched(2, seed=0)
    env.reset()
    for step in play(env, 10):
        torch.testing.assert_close(step.reward, -step.outcome.alive_s / (0.5 * 5))


def test_energy_weight_costs_reward_per_joule(recipe: EnvRecipe) -> None:
    plain = replace(recipe, control=QUICK).batched(2, seed=0)
    frugal = replace(recipe, control=QUICK, reward=RewardConfig(energy_weight=0.25)).batched(2, 0)
    plain.reset()
    frugal.reset()
    for a, b in zip(play(plain, 10), play(frugal, 10), strict=True):
        joules = a.outcome.device_energy_j.sum(1)
        torch.testing.assert_close(b.reward, a.reward - 0.25 * joules)
    assert joules.max() > 0


def with_batteries(recipe: EnvRecipe, weight: float) -> BatchedEnv:
    """Make two networks whose phones begin with next to nothing in their batteries."""
    plain = recipe.make_world(2)
    almost_empty = BatteryConfig(charge_min=0.0005, charge_max=0.001)
    config = plain.config.model_copy(update={"batteries": almost_empty})
    rates = {task.name: TaskAcceptance(mean=0.7, std=0.1) for task in config.requests.tasks}
    table = AcceptanceTable("made up", 0.7, {plain.physics.codec.rule: rates})
    world = World(config, plain.physics, plain.bank, table, 2)
    return BatchedEnv(world, "train", QUICK, RewardConfig(battery_weight=weight), seed=0)


def test_battery_weight_costs_reward_per_share_of_what_is_left(recipe: EnvRecipe) -> None:
    plain, careful = with_batteries(recipe, 0.0), with_batteries(recipe, 2.0)
    plain.reset()
    careful.reset()
    left_j = plain.state.battery_j
    shares = []
    for a, b in zip(play(plain, 19), play(careful, 19), strict=True):
        share = a.outcome.device_energy_j / left_j.clamp_min(1e-9)
        shares.append(share.sum(1))
        torch.testing.assert_close(b.reward, a.reward - 2 * shares[-1], rtol=1e-4, atol=1e-5)
        left_j = left_j - a.outcome.device_energy_j
    assert torch.stack(shares).max() > 0.02


def test_battery_weight_by_hand(recipe: EnvRecipe) -> None:
    env = with_batteries(recipe, 0.5)
    env.reset()
    outcome = env.step(actions(env, torch.Generator().manual_seed(1))).outcome
    made = replace(
        outcome,
        alive_s=torch.tensor([5.0, 0.0]),
        battery_share=torch.tensor([[0.1, 0.3, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]),
    )
    # A slot of 0.5 s with five devices: 2.5 request-seconds cost 1.
    torch.testing.assert_close(env._reward(made), torch.tensor([-2 - 0.5 * 0.4, -0.5 * 1.0]))


def test_weighted_batteries_need_batteries(recipe: EnvRecipe) -> None:
    wrong = replace(recipe, reward=RewardConfig(battery_weight=0.5))
    with pytest.raises(UserError, match=r"battery_weight is 0\.5 but .*set it to 0") as caught:
        wrong.batched(2, 0)
    assert "\n" not in str(caught.value)


def test_unweighted_batteries_leave_no_trace_in_a_dump() -> None:
    assert sorted(RewardConfig().model_dump()) == ["energy_weight", "normaliser_s"]
    assert RewardConfig(battery_weight=1).model_dump()["battery_weight"] == 1


def test_episodes_are_truncated_at_the_horizon_and_never_terminated(recipe: EnvRecipe) -> None:
    env = replace(recipe, control=QUICK).batched(3, seed=0)
    env.reset()
    steps = play(env, 40)
    assert [bool(s.truncated.all()) for s in steps] == ([False] * 19 + [True]) * 2
    assert not any(s.terminated.any() for s in steps)
    assert all(s.final_observation is s.observation for s in steps[:19])


def test_an_idle_network_is_cut_as_well_and_terminates_only_when_it_drains(
    deserted: EnvRecipe,
) -> None:
    cut = replace(deserted, control=QUICK).batched(2, seed=0)
    drains = replace(deserted, control=QUICK, drain=True).batched(2, seed=0)
    cut.reset()
    drains.reset()
    last, end = play(cut, 20)[-1], play(drains, 20)[-1]
    assert last.outcome.drained.all()
    assert last.truncated.all()
    assert not last.terminated.any()
    assert end.terminated.all()
    assert not end.truncated.any()


def test_final_observation_is_the_one_an_uncut_episode_goes_on_from(recipe: EnvRecipe) -> None:
    cut = replace(recipe, control=QUICK).batched(3, seed=0)
    uncut = replace(recipe, control=QUICK, drain=True).batched(3, seed=0)
    cut.reset()
    uncut.reset()
    last, goes_on = play(cut, 20)[-1], play(uncut, 20)[-1]
    assert last.truncated.all()
    assert not goes_on.terminated.any()
    assert same(last.final_observation, goes_on.observation)
    assert not same(last.observation, goes_on.observation)


def test_reset_by_mask_changes_only_masked_networks(recipe: EnvRecipe) -> None:
    env = replace(recipe, control=QUICK).batched(4, seed=0)
    env.reset()
    before = play(env, 8)[-1].observation
    kept = env.world.state_dict()
    mask = torch.tensor([True, False, True, False])
    after = env.reset(mask)
    assert same(after.select(~mask), before.select(~mask))
    assert not after.active[mask].any()
    assert env.world.progress.slot.tolist() == [0, 8, 0, 8]
    for name, tensor in env.world.state_dict().items():
        assert torch.equal(tensor[~mask], kept[name][~mask]), name


def test_equal_seeds_give_equal_steps_and_others_do_not(recipe: EnvRecipe) -> None:
    recipe = replace(recipe, control=QUICK)
    first, second, other = (recipe.batched(2, seed=s) for s in (5, 5, 6))
    first.reset()
    second.reset()
    other.reset()
    torch.manual_seed(0)
    rewards = torch.stack([s.reward for s in play(first, 22)])
    torch.manual_seed(1)
    assert torch.equal(torch.stack([s.reward for s in play(second, 22)]), rewards)
    assert not torch.equal(torch.stack([s.reward for s in play(other, 22)]), rewards)


def test_saved_environment_goes_on_bitwise(recipe: EnvRecipe) -> None:
    recipe = replace(recipe, control=QUICK)
    env, resumed = recipe.batched(2, seed=0), recipe.batched(2, seed=9)
    env.reset()
    observation = play(env, 12)[-1].observation
    saved = env.state_dict()
    expected = play(env, 10)
    assert same(resumed.load_state_dict(saved), observation)
    for a, b in zip(expected, play(resumed, 10), strict=True):
        assert torch.equal(a.reward, b.reward)
        assert same(a.observation, b.observation)


def test_state_of_another_size_is_refused(recipe: EnvRecipe) -> None:
    saved = recipe.batched(2, seed=0).state_dict()
    with pytest.raises(UserError, match="3 networks"):
        recipe.batched(3, seed=0).load_state_dict(saved)


def test_episodes_use_the_worlds_of_their_split(recipe: EnvRecipe) -> None:
    train, validation = (
        recipe.batched(40, seed=0),
        replace(recipe, split="validation").batched(4, 0),
    )
    train.reset()
    validation.reset()
    assert set(train.world.world.tolist()) == {0, 1, 2}
    assert set(validation.world.world.tolist()) == {3}


def test_split_without_worlds_is_refused(recipe: EnvRecipe) -> None:
    with pytest.raises(UserError, match="tuning"):
        replace(recipe, split="tuning").batched(1, seed=0)


def test_illegal_servers_are_replaced_by_the_strongest_and_counted(recipe: EnvRecipe) -> None:
    env = replace(recipe, control=QUICK).batched(6, seed=0)
    env.reset()
    total = 0
    for _ in range(15):
        state = env.state
        worst = state.gain.argmin(-1)
        step = env.step(Action(server=worst))
        for b, m in state.has_request.nonzero().tolist():
            is_legal = bool(state.reachable[b, m, worst[b, m]])
            strongest = int(state.gain[b, m].argmax())
            assert int(step.decision.server[b, m]) == (int(worst[b, m]) if is_legal else strongest)
            assert bool(step.illegal[b, m]) is not is_legal
        assert not step.illegal[~state.has_request].any()
        total += int(step.illegal.sum())
    assert total > 0
