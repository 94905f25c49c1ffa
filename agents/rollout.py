"""The rollout buffer, laid out (T, B, M, ...); the only place that flattens these axes.

Shape legend: T slots, B networks, M devices, E servers, K value columns, R = T B rows,
N devices with a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from envs.action import Action
from envs.observation import Observation


@dataclass(frozen=True)
class Transition:
    """What one slot of B networks adds to a rollout."""

    observation: Observation
    action: Action
    log_prob: Tensor  # (B, M)
    value: Tensor  # (B, K) real scale
    final_value: Tensor  # (B, K) real scale, read where truncated
    reward: Tensor  # (B, K)
    terminated: Tensor  # (B,) bool
    truncated: Tensor  # (B,) bool
    rank: Tensor | None = None  # (B, M) long, turns of choices in sequence


@dataclass(frozen=True)
class Rollout:
    """T transitions stacked along a new first axis."""

    observation: Observation  # tensors (T, B, ...)
    action: Action  # tensors (T, B, M)
    log_prob: Tensor  # (T, B, M)
    value: Tensor  # (T, B, K)
    final_value: Tensor  # (T, B, K)
    reward: Tensor  # (T, B, K)
    terminated: Tensor  # (T, B) bool
    truncated: Tensor  # (T, B) bool
    rank: Tensor | None = None  # (T, B, M) long


@dataclass(frozen=True)
class Batch:
    """Rows of a rollout; a row is one network in one slot, its devices kept together."""

    observation: Observation  # tensors (R, ...)
    action: Action  # tensors (R, M)
    log_prob: Tensor  # (R, M)
    advantage: Tensor  # (R, M) normalised
    target: Tensor  # (R, K) normalised value targets
    value: Tensor  # (R, K) normalised values at collection
    rank: Tensor | None = None  # (R, M) long

    def select(self, rows: Tensor) -> Batch:
        """Take rows by index."""
        return Batch(
            observation=self.observation.select(rows),
            action=_map_action(self.action, lambda tensor: tensor[rows]),
            log_prob=self.log_prob[rows],
            advantage=self.advantage[rows],
            target=self.target[rows],
            value=self.value[rows],
            rank=None if self.rank is None else self.rank[rows],
        )

    def minibatches(self, count: int, generator: torch.Generator) -> Iterator[Batch]:
        """Split the rows at random into `count` parts; every row comes exactly once."""
        order = torch.randperm(len(self.log_prob), generator=generator)
        for rows in order.chunk(count):
            yield self.select(rows)


def stack(transitions: list[Transition]) -> Rollout:
    """Stack transitions in time."""
    first = transitions[0]
    observation = Observation(
        **{
            field.name: torch.stack([getattr(t.observation, field.name) for t in transitions])
            for field in fields(Observation)
        }
    )
    action = Action(
        **{
            field.name: torch.stack([getattr(t.action, field.name) for t in transitions])
            for field in fields(Action)
            if getattr(first.action, field.name) is not None
        }
    )
    rest = {
        field.name: torch.stack([getattr(t, field.name) for t in transitions])
        for field in fields(Transition)
        if field.name not in ("observation", "action") and getattr(first, field.name) is not None
    }
    return Rollout(observation=observation, action=action, **rest)


def flatten(rollout: Rollout, advantage: Tensor, target: Tensor, normalised_value: Tensor) -> Batch:
    """Merge time and networks into rows: (T, B, ...) becomes (T B, ...).

    Args:
        rollout: T slots of B networks.
        advantage: (T, B, M) normalised.
        target: (T, B, K) normalised value targets.
        normalised_value: (T, B, K) values at collection.
    """

    def rows(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1)

    return Batch(
        observation=Observation(
            **{f.name: rows(getattr(rollout.observation, f.name)) for f in fields(Observation)}
        ),
        action=_map_action(rollout.action, rows),
        log_prob=rows(rollout.log_prob),
        advantage=rows(advantage),
        target=rows(target),
        value=rows(normalised_value),
        rank=None if rollout.rank is None else rows(rollout.rank),
    )


def keep_active(batch: Batch) -> Batch:
    """Turn each device with a request into a network of one device, (N, 1, ...).

    A policy of view "device" reads nothing of other devices, so its gradient is the same, and
    devices without a request cost no time. The value columns mean nothing here and are left empty.
    """
    row, device = batch.observation.active.nonzero(as_tuple=True)

    def own(tensor: Tensor) -> Tensor:
        return tensor[row, device].unsqueeze(1)

    observation = batch.observation
    empty = batch.target.new_empty(len(row), 0)
    return Batch(
        observation=Observation(
            device=own(observation.device),
            pair=own(observation.pair),
            server=observation.server[row],
            mask=own(observation.mask),
            active=own(observation.active),
        ),
        action=_map_action(batch.action, own),
        log_prob=own(batch.log_prob),
        advantage=own(batch.advantage),
        target=empty,
        value=empty,
    )


def _map_action(action: Action, change: Callable[[Tensor], Tensor]) -> Action:
    """Apply a change to every learned head."""
    return Action(
        **{
            field.name: change(getattr(action, field.name))
            for field in fields(Action)
            if getattr(action, field.name) is not None
        }
    )
