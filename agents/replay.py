"""The replay buffer of MASAC: a ring of slots, preallocated on the device that learns.

Shape legend: S slots, B networks, M devices, E servers, N sampled transitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from envs.action import Action
from envs.batched import Step
from envs.observation import Observation


class ReplayConfig(BaseModel):
    """How much is remembered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity: int = Field(
        65_536, gt=0, description="network slots remembered, rounded up to whole slots of all"
    )
    in_checkpoint: bool = Field(
        True,
        description="store the buffer with the training; without it a resumed training begins "
        "with an empty one and is not bit for bit the uninterrupted one",
    )


@dataclass(frozen=True)
class ReplayBatch:
    """Transitions drawn from the buffer."""

    observation: Observation  # tensors (N, ...)
    action: Action  # tensors (N, M)
    reward: Tensor  # (N, M)
    terminated: Tensor  # (N,) bool
    next_observation: Observation  # the true one, also where the episode was cut
    age: Tensor  # (N,) slots since it was played


class Replay:
    """Remembers the last slots of B networks.

    The observation after a slot is the one that the next slot starts with, so each is stored once.
    Where an episode was cut, the ring goes on with the next episode; the true last observation is
    kept aside. A network is cut at most once in `last_slot` slots, which bounds how many there are.
    """

    def __init__(
        self,
        config: ReplayConfig,
        observation: Observation,
        action: Action,
        last_slot: int,
        device: torch.device,
    ) -> None:
        """Allocate everything.

        Args:
            config: size.
            observation: of B networks, for the shapes.
            action: for the heads and their types.
            last_slot: length of an episode.
            device: where the tensors live and are drawn.
        """
        self.networks = len(observation.active)
        self.slots = max(1, -(-config.capacity // self.networks))
        self.ring = self.slots + 1  # the newest observation has no transition yet
        self.finals = self.slots // last_slot + 2
        self.device = device

        def empty(like: Tensor, slots: int) -> Tensor:
            return torch.zeros(slots, *like.shape, dtype=like.dtype, device=device)

        parts = {f.name: getattr(observation, f.name) for f in fields(Observation)}
        self._observation = {name: empty(part, self.ring) for name, part in parts.items()}
        self._final = {name: empty(part, self.finals) for name, part in parts.items()}
        heads = {k: v for k, v in vars(action).items() if v is not None}
        self._action = {name: empty(part, self.ring) for name, part in heads.items()}
        self._reward = torch.zeros(self.ring, *observation.active.shape, device=device)
        rows = torch.zeros(self.ring, self.networks, device=device)
        self._terminated = rows.bool()
        self._truncated = rows.bool()
        self._final_index = rows.long()
        self._num_finals = torch.zeros(self.networks, dtype=torch.long, device=device)
        self.cursor = 0  # where the newest observation is
        self.filled = 0  # transitions per network

    def begin(self, observation: Observation) -> None:
        """Take the observation that the first slot starts with."""
        self._write(self._observation, self.cursor, observation)

    def add(self, action: Action, reward: Tensor, step: Step) -> None:
        """Remember one slot of all networks; `reward` is (B, M)."""
        here, device = self.cursor, self.device
        for name, part in self._action.items():
            part[here] = getattr(action, name).to(device)
        self._reward[here] = reward.to(device)
        self._terminated[here] = step.terminated.to(device)
        self._truncated[here] = step.truncated.to(device)
        place = self._num_finals % self.finals
        self._final_index[here] = place
        if bool(step.truncated.any()):
            cut = step.truncated.to(device)
            rows = cut.nonzero().squeeze(1)
            final = step.final_observation.to(device)
            for name, part in self._final.items():
                part[place[rows], rows] = getattr(final, name)[rows]
            self._num_finals += cut
        self.cursor = (here + 1) % self.ring
        self.filled = min(self.filled + 1, self.slots)
        self._write(self._observation, self.cursor, step.observation)

    def sample(self, count: int, generator: torch.Generator) -> ReplayBatch:
        """Draw transitions uniformly, with replacement."""
        assert self.filled > 0, "the buffer is empty"
        pick = torch.randint(
            self.filled * self.networks, (count,), generator=generator, device=self.device
        )
        age, network = pick // self.networks + 1, pick % self.networks
        slot = (self.cursor - age) % self.ring
        following = (slot + 1) % self.ring
        cut = self._truncated[slot, network]
        final = self._final_index[slot, network]

        def after(name: str) -> Tensor:
            on, last = (
                self._observation[name][following, network],
                self._final[name][final, network],
            )
            return torch.where(cut.view(-1, *[1] * (on.dim() - 1)), last, on)

        names = [f.name for f in fields(Observation)]
        return ReplayBatch(
            observation=Observation(**{n: self._observation[n][slot, network] for n in names}),
            action=Action(**{n: part[slot, network] for n, part in self._action.items()}),
            reward=self._reward[slot, network],
            terminated=self._terminated[slot, network],
            next_observation=Observation(**{n: after(n) for n in names}),
            age=age,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has been filled; copies, so that a file holds no more than that."""
        used = min(self.ring, self.filled + 1)

        def part(tensors: Iterable[tuple[str, Tensor]], count: int) -> dict[str, Tensor]:
            return {name: tensor[:count].clone() for name, tensor in tensors}

        return {
            "cursor": self.cursor,
            "filled": self.filled,
            "num_finals": self._num_finals.clone(),
            "observation": part(self._observation.items(), used),
            "action": part(self._action.items(), used),
            "final": part(self._final.items(), self.finals),
            "rows": part(self._rows(), used),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.cursor, self.filled = int(state["cursor"]), int(state["filled"])
        self._num_finals.copy_(state["num_finals"])
        groups = (("observation", self._observation), ("action", self._action))
        for key, tensors in (*groups, ("final", self._final), ("rows", dict(self._rows()))):
            for name, saved in state[key].items():
                tensors[name][: len(saved)] = saved.to(self.device)

    def _rows(self) -> list[tuple[str, Tensor]]:
        return [
            ("reward", self._reward),
            ("terminated", self._terminated),
            ("truncated", self._truncated),
            ("final_index", self._final_index),
        ]

    def _write(self, tensors: dict[str, Tensor], slot: int, observation: Observation) -> None:
        for name, part in tensors.items():
            part[slot] = getattr(observation, name).to(self.device)
