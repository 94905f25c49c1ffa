"""The Gymnasium view: checker, registration, what flat actions mean."""

from __future__ import annotations

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import ControlConfig, EnvRecipe, NetworkEnv
from envs.flat import FlatActions, FlatStyle
from envs.single import ENV_ID
from uara.errors import UserError

ALL = ControlConfig(
    association="learned", bandwidth="learned", power="learned", draft_length="learned"
)


@pytest.mark.parametrize("style", ["discrete", "box"])
def test_gymnasium_finds_no_fault(recipe: EnvRecipe, style: FlatStyle) -> None:
    recipe = replace(recipe, control=ALL)
    env = gymnasium.make(ENV_ID, recipe=recipe, style=style, disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def test_discrete_actions_are_read_device_by_device_head_by_head() -> None:
    flat = FlatActions(ALL, num_devices=2, num_servers=3, max_draft_length=8, levels=5)
    assert flat.space.nvec.tolist() == [3, 5, 5, 9] * 2
    action = flat.to_action(np.array([[2, 0, 4, 8, 1, 2, 1, 3]]))
    assert action.server.tolist() == [[2, 1]]
    assert action.bandwidth.tolist() == [[0.0, 0.5]]
    assert action.power.tolist() == [[1.0, 0.25]]
    assert action.draft_length.tolist() == [[8, 3]]


def test_box_actions_score_servers_and_map_to_ranges() -> None:
    control = ControlConfig(association="learned", power="learned", draft_length="learned")
    flat = FlatActions(control, num_devices=2, num_servers=3, max_draft_length=8, style="box")
    assert flat.space.shape == (10,)
    values = np.array([[-1, 0.9, 0, 1, -1, 0.1, -0.2, 0, -1, 1]], np.float32)
    action = flat.to_action(values)
    assert action.server.tolist() == [[1, 0]]
    assert action.power.tolist() == [[1.0, 0.0]]
    assert action.draft_length.tolist() == [[0, 8]]
    assert action.bandwidth is None


def test_illegal_servers_are_counted(recipe: EnvRecipe) -> None:
    env = NetworkEnv(replace(recipe, control=ControlConfig(draft_length=3)))
    env.reset(seed=0)
    counts = []
    for _ in range(18):
        state = env.env.state
        worst = state.gain[0].argmin(-1)
        out_of_reach = ~state.reachable[0].gather(1, worst[:, None]).squeeze(1)
        info = env.step(worst.numpy())[4]
        assert info["illegal_servers"] == int((out_of_reach & state.has_request[0]).sum())
        counts.append(info["illegal_servers"])
    assert sum(counts) > 0


def test_a_controller_with_nothing_to_learn_is_refused(recipe: EnvRecipe) -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        NetworkEnv(replace(recipe, control=ControlConfig(association="max_sinr")))
    with pytest.raises(UserError, match="at least 2"):
        NetworkEnv(recipe, levels=1)
