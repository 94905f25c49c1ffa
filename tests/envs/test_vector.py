"""The stable-baselines3 view: truncation, terminal observations, seeds, a learner that runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3 import PPO

from envs import ControlConfig, EnvRecipe, NetworkVecEnv
from envs.flat import FlatStyle, flatten_network
from uara.errors import UserError

QUICK = ControlConfig(draft_length=3)


def vec(recipe: EnvRecipe, num: int = 3, style: FlatStyle = "discrete") -> NetworkVecEnv:
    return NetworkVecEnv(replace(recipe, control=QUICK).batched(num, seed=0), style=style)


def test_cut_episodes_carry_their_true_last_observation(recipe: EnvRecipe) -> None:
    env = vec(recipe)
    uncut = replace(recipe, control=QUICK, drain=True).batched(3, seed=0)
    env.reset()
    uncut.reset()
    action = np.zeros((3, 5), dtype=np.int64)
    for slot in range(1, 21):
        rows, rewards, ends, infos = env.step(action)
        true = flatten_network(uncut.step(env.actions.to_action(action)).observation).numpy()
        assert ends.tolist() == [slot == 20] * 3
        assert rewards.shape == (3,)
        assert rows.dtype == np.float32
        if slot < 20:
            assert np.array_equal(rows, true)
            assert not any("terminal_observation" in info for info in infos)
    for b, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert np.array_equal(info["terminal_observation"], true[b])
        assert not np.array_equal(info["terminal_observation"], rows[b])


def test_drained_episodes_are_not_truncated(recipe: EnvRecipe) -> None:
    env = NetworkVecEnv(
        replace(recipe, control=ControlConfig(power="learned", draft_length=3), drain=True).batched(
            2, seed=0
        )
    )
    env.reset()
    action = np.concatenate([np.stack([np.zeros((2, 5)), np.full((2, 5), 4)], -1).reshape(2, -1)])
    for _ in range(420):
        _, _, ends, infos = env.step(action)
        if ends.any():
            break
    assert ends.any()
    assert infos[int(ends.argmax())]["TimeLimit.truncated"] is False


def test_seed_starts_the_stream_anew(recipe: EnvRecipe) -> None:
    env = vec(recipe)
    env.seed(11)
    env.reset()
    first = [env.step(np.ones((3, 5), dtype=np.int64))[1] for _ in range(12)]
    env.seed(11)
    env.reset()
    assert np.array_equal([env.step(np.ones((3, 5), dtype=np.int64))[1] for _ in range(12)], first)
    env.reset()
    assert not np.array_equal(
        [env.step(np.ones((3, 5), dtype=np.int64))[1] for _ in range(12)], first
    )


@pytest.mark.parametrize("style", ["discrete", "box"])
def test_ppo_learns_on_it(recipe: EnvRecipe, style: FlatStyle) -> None:
    env = vec(recipe, style=style)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(48)
    after = list(model.policy.parameters())
    assert any(not np.array_equal(a.detach(), b) for a, b in zip(after, before, strict=True))


def test_misuse_ends_in_one_line(recipe: EnvRecipe) -> None:
    with pytest.raises(UserError, match="auto_reset"):
        NetworkVecEnv(recipe.batched(2, seed=0, auto_reset=False))
    with pytest.raises(UserError, match="rows of one batch"):
        vec(recipe).env_method("step")
