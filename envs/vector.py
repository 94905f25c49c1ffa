"""The stable-baselines3 view: B networks in step as one `VecEnv`.

Shape legend: B networks, F features, A entries of a flat action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from envs.batched import BatchedEnv
from envs.flat import Array, FlatActions, FlatStyle, flatten_network, network_space
from envs.picture import draw_state
from uara.errors import UserError

Indices = None | int | Sequence[int]


class NetworkVecEnv(VecEnv):
    """B networks, one controller each; the physics of all runs in one call.

    At the end of an episode `infos` carries `terminal_observation` and `TimeLimit.truncated`, and
    the observation returned is the first of the next episode.
    """

    def __init__(self, env: BatchedEnv, *, style: FlatStyle = "discrete", levels: int = 5) -> None:
        """Wrap a batch that resets by itself.

        Raises:
            UserError: if the batch does not reset by itself or leaves nothing to learn.
        """
        if not env.auto_reset:
            raise UserError("auto_reset is False; a VecEnv needs a BatchedEnv with auto_reset=True")
        self.env = env
        self.render_mode = "rgb_array"
        world = env.world
        self.actions = FlatActions(
            env.control,
            world.num_devices,
            world.num_servers,
            world.physics.config.max_draft_length,
            style,
            levels,
        )
        self._given: NDArray[Any] | None = None
        space = network_space(world.num_devices, world.num_servers)
        super().__init__(env.num_networks, space, self.actions.space)

    def reset(self) -> Array:
        """Start episodes in all networks, anew from the seed that `seed` was given."""
        observation = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        row: Array = flatten_network(observation).numpy()
        return row

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (B, A) for `step_wait`."""
        self._given = actions

    def step_wait(self) -> tuple[Array, Array, NDArray[np.bool_], list[dict[str, Any]]]:
        """Play one slot.

        Returns:
            observations (B, F), rewards (B,), ends (B,) and infos.
        """
        assert self._given is not None, "step_wait without step_async"
        step = self.env.step(self.actions.to_action(self._given))
        self._given = None
        ended = step.terminated | step.truncated
        infos: list[dict[str, Any]] = [
            {"illegal_servers": count} for count in step.illegal.sum(1).tolist()
        ]
        rows = torch.nonzero(ended).squeeze(1)
        if rows.numel() > 0:
            final = flatten_network(step.final_observation.select(rows)).numpy()
            for k, row in enumerate(rows.tolist()):
                infos[row]["terminal_observation"] = final[k]
                infos[row]["TimeLimit.truncated"] = bool(step.truncated[row])
        observation: Array = flatten_network(step.observation).numpy()
        return observation, step.reward.numpy(), ended.numpy(), infos

    def close(self) -> None:
        """Release nothing: the environment holds no resources."""

    def get_images(self) -> list[NDArray[np.uint8] | None]:
        """Draw the first network; the others are not drawn."""
        return [draw_state(self.env.state, self.env.world.bank.site_position_m)]

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute, once for each network asked for."""
        return [getattr(self, attr_name)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute; the networks share it.

        Raises:
            UserError: if only some of the networks are meant.
        """
        if len(self._indices(indices)) != self.num_envs:
            raise UserError(
                f"attribute '{attr_name}' belongs to all {self.num_envs} networks; give no indices"
            )
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: networks are rows of tensors, not objects.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"env_method('{method_name}') is not possible: the networks are rows of one batch; "
            "use the attributes of NetworkVecEnv.env"
        )

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Tell that no network has a wrapper of its own."""
        return [False] * len(self._indices(indices))

    def _indices(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))
