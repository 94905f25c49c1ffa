"""Our batched environment as TorchRL sees it, the server head only.

Shape legend: B networks, M devices, E servers, F features of a device's row.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from envs.action import Action
from envs.batched import BatchedEnv
from envs.flat import flatten_devices
from envs.observation import Observation


class NetworkTorchRlEnv(EnvBase):
    """B networks in one environment of batch size (B,); devices are the group `agents`."""

    def __init__(self, env: BatchedEnv) -> None:
        """Wrap a batch that does not reset by itself."""
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([env.num_networks]))
        self.env = env
        networks, devices = env.num_networks, env.world.num_devices
        servers = env.world.num_servers
        width = flatten_devices(env.reset()).shape[-1]
        each = (networks, devices)

        def group(**parts: Any) -> Composite:
            return Composite({"agents": Composite(parts, shape=each)}, shape=(networks,))

        self.observation_spec = group(
            observation=Unbounded((*each, width)),
            action_mask=Binary(shape=(*each, servers), dtype=torch.bool),
        )
        self.action_spec = group(action=Categorical(servers, shape=each))
        self.reward_spec = group(reward=Unbounded((*each, 1)))
        ends = {
            name: Binary(shape=(networks, 1), dtype=torch.bool)
            for name in ("done", "terminated", "truncated")
        }
        self.done_spec = Composite(ends, shape=(networks,))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        observation = self.env.reset(None if mask is None else mask.view(-1))
        never = torch.zeros(self.env.num_networks, 1, dtype=torch.bool)
        return self._rows(observation).update(
            {"done": never, "terminated": never.clone(), "truncated": never.clone()}
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = self.env.step(Action(server=tensordict["agents", "action"]))
        rows = self._rows(step.final_observation)
        devices = self.env.world.num_devices
        rows["agents", "reward"] = step.reward[:, None, None].expand(-1, devices, 1).clone()
        ended = (step.terminated | step.truncated).unsqueeze(1)
        return rows.update(
            {
                "done": ended,
                "terminated": step.terminated.unsqueeze(1),
                "truncated": step.truncated.unsqueeze(1),
            }
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.env.reset(seed=seed)

    def _rows(self, observation: Observation) -> TensorDictBase:
        shown: dict[str, Tensor] = {
            "observation": flatten_devices(observation),
            "action_mask": observation.mask,
        }
        each = observation.active.shape
        return TensorDict({"agents": TensorDict(shown, batch_size=each)}, batch_size=each[:1])
