"""The Gymnasium view: one controller that decides for all devices of one network at once.

Importing this module registers the id `uara/Network-v0`, whose keyword `recipe` is needed.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.batched import EnvRecipe
from envs.flat import Array, FlatActions, FlatStyle, flatten_network, network_space
from envs.picture import render

ENV_ID = "uara/Network-v0"


class NetworkEnv(gymnasium.Env[Array, NDArray[Any]]):
    """One network with flat observations and flat actions.

    A server out of reach becomes the strongest one in reach; `info["illegal_servers"]` counts them.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 - Gymnasium's form

    def __init__(
        self,
        recipe: EnvRecipe,
        *,
        style: FlatStyle = "discrete",
        levels: int = 5,
        seed: int = 0,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        """Make the network.

        Args:
            recipe: world, control, reward and split.
            style: "discrete" for PPO (`MultiDiscrete`), "box" for SAC (flat `Box`).
            levels: of bandwidth and power where the style is "discrete".
            seed: of the first episodes; `reset(seed=...)` starts the stream anew.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: if the control config leaves nothing to learn.
        """
        self.render_mode = render_mode
        self.env = recipe.batched(1, seed, auto_reset=False)
        world = self.env.world
        self.actions = FlatActions(
            recipe.control,
            world.num_devices,
            world.num_servers,
            world.physics.config.max_draft_length,
            style,
            levels,
        )
        self.action_space = self.actions.space
        self.observation_space = network_space(world.num_devices, world.num_servers)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode; `options` has no entries that are read."""
        super().reset(seed=seed)
        observation = self.env.reset(seed=seed)
        row: Array = flatten_network(observation)[0].numpy()
        return row, {"illegal_servers": 0}

    def step(self, action: NDArray[Any]) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play one slot."""
        step = self.env.step(self.actions.to_action(np.asarray(action)[None]))
        row: Array = flatten_network(step.final_observation)[0].numpy()
        finished = step.outcome.finished[0]
        info = {
            "illegal_servers": int(step.illegal.sum()),
            "e2e_s": step.outcome.e2e_s[0][finished].numpy(),
        }
        return row, float(step.reward[0]), bool(step.terminated[0]), bool(step.truncated[0]), info

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the network as an image (H, W, 3) where the render mode asks for it."""
        return render(self.env, self.render_mode)


if ENV_ID not in gymnasium.registry:
    gymnasium.register(id=ENV_ID, entry_point="envs.single:NetworkEnv")
