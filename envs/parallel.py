"""The PettingZoo view: one network, one agent per device, each seeing what a device can see.

Shape legend: M devices, E servers, F features.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from envs.action import Action, ControlConfig, Head
from envs.batched import EnvRecipe
from envs.flat import (
    Array,
    check_learns,
    device_space,
    flatten_devices,
    flatten_network,
    network_space,
)
from envs.observation import Observation
from envs.picture import render
from uara.errors import UserError
from uara.network import SlotOutcome

DeviceAction = dict[str, Any]
DeviceObservation = dict[str, Any]


class DeviceActionSpace(spaces.Dict):
    """The learned heads of one device; `sample` takes the device's `action_mask`."""

    def __init__(self, control: ControlConfig, num_servers: int, max_draft_length: int) -> None:
        """Make a space for each head that `control` learns."""
        heads: dict[Head, spaces.Space[Any]] = {
            "server": spaces.Discrete(num_servers),
            "bandwidth": spaces.Box(0.0, 1.0, (1,), dtype=np.float32),
            "power": spaces.Box(0.0, 1.0, (1,), dtype=np.float32),
            "draft_length": spaces.Discrete(max_draft_length + 1),
        }
        super().__init__({head: heads[head] for head in control.learned})

    def sample(self, mask: Any = None, probability: Any = None) -> DeviceAction:
        """Draw an action; with a mask (E,) the server is in reach."""
        if isinstance(mask, np.ndarray):
            mask = {head: mask if head == "server" else None for head in self.spaces}
        sampled: DeviceAction = super().sample(mask, probability)
        return sampled


class NetworkParallelEnv(ParallelEnv[str, DeviceObservation, DeviceAction]):
    """Devices of one network as agents with one common reward.

    Agents live through the whole episode, also while they have no request (their actions are then
    ignored). Observations are `{"observation": own row, own pairs, servers; "action_mask": servers
    in reach}`.
    """

    metadata = {  # noqa: RUF012 - the attribute's form is PettingZoo's
        "name": "uara_network_v0",
        "render_modes": ["rgb_array"],
        "render_fps": 2,
        "is_parallelizable": True,
    }

    def __init__(
        self, recipe: EnvRecipe, *, seed: int = 0, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        """Make the network.

        Args:
            recipe: world, control, reward and split.
            seed: of the first episodes; `reset(seed=...)` starts the stream anew.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: if the control config leaves nothing to learn.
        """
        check_learns(recipe.control)
        self.render_mode = render_mode
        self.env = recipe.batched(1, seed, auto_reset=False)
        world = self.env.world
        self.possible_agents = [f"device_{i}" for i in range(world.num_devices)]
        self.agents: list[str] = []
        row = device_space(world.num_servers)
        reach = spaces.Box(0, 1, (world.num_servers,), dtype=np.int8)
        longest = world.physics.config.max_draft_length
        self.observation_spaces = {
            agent: spaces.Dict({"observation": row, "action_mask": reach})
            for agent in self.possible_agents
        }
        self.action_spaces = {
            agent: DeviceActionSpace(recipe.control, world.num_servers, longest)
            for agent in self.possible_agents
        }
        self.state_space = network_space(world.num_devices, world.num_servers)
        self._last: Observation | None = None

    def observation_space(self, agent: str) -> spaces.Dict:
        """Return the agent's observation space, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> DeviceActionSpace:
        """Return the agent's action space, always the same object."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, DeviceObservation], dict[str, dict[str, Any]]]:
        """Start an episode; `options` has no entries that are read."""
        self._last = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        observations = self._observations()
        infos = {agent: {"action_mask": row["action_mask"]} for agent, row in observations.items()}
        return observations, infos

    def step(
        self, actions: dict[str, DeviceAction]
    ) -> tuple[
        dict[str, DeviceObservation],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Play one slot.

        Raises:
            UserError: if an agent's action is missing, or if the episode is over.
        """
        if not self.agents:
            raise UserError("step was called without a running episode; call reset first")
        step = self.env.step(self._to_action(actions))
        self._last = step.final_observation
        agents = self.agents
        observations = self._observations()
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        infos = _infos(agents, observations, step.illegal[0].tolist(), step.outcome)
        if terminated or truncated:
            self.agents = []
        return (
            observations,
            dict.fromkeys(agents, float(step.reward[0])),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            infos,
        )

    def state(self) -> Array:
        """Return the whole network as one row, see `state_space`.

        Raises:
            UserError: before the first reset.
        """
        if self._last is None:
            raise UserError("state was called before the first episode; call reset first")
        row: Array = flatten_network(self._last)[0].numpy()
        return row

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the network as an image (H, W, 3) where the render mode asks for it."""
        return render(self.env, self.render_mode)

    def close(self) -> None:
        """Release nothing: the environment holds no resources."""

    def _to_action(self, actions: dict[str, DeviceAction]) -> Action:
        """Collect the agents' heads in tensors (1, M)."""
        if set(actions) != set(self.agents):
            raise UserError(
                f"actions were given for {', '.join(sorted(actions)) or 'nobody'}; "
                f"give one for each of {', '.join(self.agents)}"
            )
        chosen = {
            head: torch.as_tensor(
                np.array([np.ravel(actions[agent][head])[0] for agent in self.agents])
            )[None]
            for head in self.env.control.learned
        }
        return Action(**chosen)

    def _observations(self) -> dict[str, DeviceObservation]:
        assert self._last is not None, "an observation is asked for before the first reset"
        rows = flatten_devices(self._last)[0].numpy()
        mask = self._last.mask[0].numpy().astype(np.int8)
        return {
            agent: {"observation": rows[i], "action_mask": mask[i]}
            for i, agent in enumerate(self.possible_agents)
        }


def _infos(
    agents: list[str],
    observations: dict[str, DeviceObservation],
    illegal: list[bool],
    outcome: SlotOutcome,
) -> dict[str, dict[str, Any]]:
    """Tell each agent its mask, whether its server was replaced, and its finished request."""
    finished, e2e_s = outcome.finished[0].tolist(), outcome.e2e_s[0].tolist()
    return {
        agent: {
            "action_mask": observations[agent]["action_mask"],
            "illegal_server": illegal[i],
            "finished": finished[i],
            "e2e_s": e2e_s[i],
        }
        for i, agent in enumerate(agents)
    }


def parallel_env(
    recipe: EnvRecipe, *, seed: int = 0, render_mode: Literal["rgb_array"] | None = None
) -> NetworkParallelEnv:
    """Make the PettingZoo environment, see `NetworkParallelEnv`."""
    return NetworkParallelEnv(recipe, seed=seed, render_mode=render_mode)
