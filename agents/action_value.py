"""The critic of MASAC: the value of every choice of one device, given what the others do.

Shape legend: B networks, M devices, E servers, C candidates (servers, or one), L draft lengths,
K continuous heads, H width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.network import (
    FeatureSizes,
    NetworkConfig,
    PairEmbedding,
    activation_of,
    make_linear,
    rule_presence,
)
from agents.soft_values import CONTINUOUS, stack_shares
from envs.action import Action, Head
from envs.observation import Observation

SCALE = 0.25  # of sums over the devices of a server, which are of the order of four


class ActionValue(nn.Module):
    """Q of a joint action, with one device's part left open; size independent of M and E.

    A row of device m and candidate server e sees: its own pair with its own continuous values; the
    other devices on e with what they chose (a sum, so that it counts them); the other devices of
    the network (a mean); the servers (a mean). It gives a value for each draft length. A device
    without a request makes no choice: its rows see the others only. What all choices of a device
    have in common is a value of its own: while it sinks to the level of the returns, choices that
    are rarely played would else lag behind and look better than they are.
    """

    def __init__(
        self,
        sizes: FeatureSizes,
        config: NetworkConfig,
        heads: tuple[Head, ...],
        max_draft_length: int,
    ) -> None:
        """Draw the weights."""
        super().__init__()
        self.heads = heads
        self.continuous = tuple(head for head in CONTINUOUS if head in heads)
        self.serving_column = sizes.serving_column
        self.num_lengths = max_draft_length + 1 if "draft_length" in heads else 1
        width = config.hidden
        self.activation, gain = activation_of(config)
        self.embedding = PairEmbedding(sizes, config)
        self.shares_layer = make_linear(max(1, len(self.continuous)), width, gain)
        self.length_layer = make_linear(self.num_lengths, width, gain)
        self.own_layer = make_linear(width, width, gain)
        self.near_layer = make_linear(width, width, gain)
        self.far_layer = make_linear(width, width, gain)
        self.server_layer = make_linear(sizes.server, width, gain)
        self.norm = nn.LayerNorm(width)
        self.hidden_layer = make_linear(width, width, gain)
        self.hidden_norm = nn.LayerNorm(width)
        self.base_layer = make_linear(width, width, gain)
        self.base_norm = nn.LayerNorm(width)
        self.base_head = make_linear(width, 1, 1.0)
        # At first all choices are worth the same, so that the actor follows nothing made up.
        self.value_head = make_linear(width, self.num_lengths, 0.01)

    def taken(self, observation: Observation, action: Action) -> Tensor:
        """Value the joint action that was taken, seen from each device, (B, M)."""
        linear = self.embedding.linear_part(observation)
        presence = self._presence(observation, action)
        own = _at_own_server(linear, action, presence)
        shares = self._shares(action, own[..., 0])
        near, far = self._others(own, shares, observation, action, presence)
        row = self._rows(
            own.unsqueeze(2),
            shares.unsqueeze(2),
            _at_own_server(near, action, presence).unsqueeze(2),
            far,
            observation,
        )
        row = row + self._base(linear, far, observation)
        if action.draft_length is None:
            return row.squeeze(2).squeeze(-1)
        chosen = row.squeeze(2).gather(-1, action.draft_length.unsqueeze(-1)).squeeze(-1)
        # Nothing depends on the length that a device without a request was given.
        return torch.where(observation.active, chosen, row.squeeze(2).mean(-1))

    def candidates(self, observation: Observation, others: Action, shares: Tensor) -> Tensor:
        """Value each choice of one device while the others do as they do, (B, M, C, L).

        Args:
            observation: B networks.
            others: joint action; row m reads the entries of the other devices only.
            shares: (B, M, C, K) continuous values of each candidate.
        """
        linear = self.embedding.linear_part(observation)
        every = linear
        presence = self._presence(observation, others)
        own = _at_own_server(linear, others, presence)
        near, far = self._others(
            own, self._shares(others, own[..., 0]), observation, others, presence
        )
        if others.server is None:
            linear = own.unsqueeze(2)
            near = _at_own_server(near, others, presence).unsqueeze(2)
        rows = self._rows(linear, shares, near, far, observation)
        return rows + self._base(every, far, observation)

    def _others(
        self,
        own: Tensor,
        shares: Tensor,
        observation: Observation,
        action: Action,
        presence: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Pool the others: those on each server (B, M, E, H), those anywhere (B, M, H)."""
        total = own + self._of_shares(shares)
        if action.draft_length is not None:
            total = total + self.length_layer.weight.T[action.draft_length] + self.length_layer.bias
        chosen = self.embedding.finish(total) * observation.active.unsqueeze(-1).to(own.dtype)
        near = self.near_layer(chosen) - self.near_layer.bias
        placed = presence.unsqueeze(-1) * near.unsqueeze(2)
        around = placed.sum(1, keepdim=True) - placed
        far = self.far_layer(chosen) - self.far_layer.bias
        mean = (far.sum(1, keepdim=True) - far) / far.shape[1]
        return SCALE * around, mean

    def _rows(
        self,
        linear: Tensor,
        shares: Tensor,
        near: Tensor,
        far: Tensor,
        observation: Observation,
    ) -> Tensor:
        """Value rows (B, M, C, L) from the parts that they see."""
        active = observation.active[..., None, None].to(linear.dtype)
        own = self.embedding.finish(linear + self._of_shares(shares)) * active
        servers = self.server_layer(observation.server).mean(1)[:, None, None]
        total = self.own_layer(own) + near + far.unsqueeze(2) + servers
        hidden = self.activation(self.norm(total))
        hidden = self.activation(self.hidden_norm(self.hidden_layer(hidden)))
        value: Tensor = self.value_head(hidden)
        return value

    def _base(self, linear: Tensor, far: Tensor, observation: Observation) -> Tensor:
        """Value what all choices of a device have in common, (B, M, 1, 1).

        Args:
            linear: (B, M, E, H) of all pairs.
            far: (B, M, H) others anywhere.
            observation: B networks.
        """
        active = observation.active.unsqueeze(-1).to(linear.dtype)
        own = self.embedding.finish(linear.mean(2)) * active
        servers = self.server_layer(observation.server).mean(1).unsqueeze(1)
        hidden = self.activation(self.base_norm(self.base_layer(own) + far + servers))
        base: Tensor = self.base_head(hidden)
        return base.unsqueeze(-1)

    def _of_shares(self, shares: Tensor) -> Tensor | float:
        """Embed continuous values (..., K), which are in [0, 1]."""
        if not self.continuous:
            return 0.0
        embedded: Tensor = self.shares_layer(2 * shares - 1)
        return embedded

    def _shares(self, action: Action, like: Tensor) -> Tensor:
        """Put the continuous values of an action side by side, (B, M, K)."""
        return stack_shares([getattr(action, head) for head in self.continuous], like)

    def _presence(self, observation: Observation, action: Action) -> Tensor:
        """Say which server each device is on, (B, M, E); by weight where a rule will choose."""
        if action.server is None:
            return rule_presence(observation, self.serving_column)
        servers = observation.pair.shape[2]
        return nn.functional.one_hot(action.server, servers).to(observation.pair.dtype)


class TwinValue(nn.Module):
    """Two critics from independent weights; what is built on them uses the lower one."""

    def __init__(
        self,
        sizes: FeatureSizes,
        config: NetworkConfig,
        heads: tuple[Head, ...],
        max_draft_length: int,
    ) -> None:
        """Draw the weights of both."""
        super().__init__()
        self.first = ActionValue(sizes, config, heads, max_draft_length)
        self.second = ActionValue(sizes, config, heads, max_draft_length)

    def taken(self, observation: Observation, action: Action) -> tuple[Tensor, Tensor]:
        """Value the joint action that was taken, by each, (B, M)."""
        return self.first.taken(observation, action), self.second.taken(observation, action)

    def least(self, observation: Observation, others: Action, shares: Tensor) -> Tensor:
        """Take the lower value of each choice, (B, M, C, L)."""
        return torch.minimum(
            self.first.candidates(observation, others, shares),
            self.second.candidates(observation, others, shares),
        )


def _at_own_server(rows: Tensor, action: Action, presence: Tensor) -> Tensor:
    """Take the rows (B, M, E, H) where each device is, (B, M, H)."""
    if action.server is None:
        return (rows * presence.unsqueeze(-1)).sum(2)
    index = action.server[..., None, None].expand(*action.server.shape, 1, rows.shape[-1])
    return rows.gather(2, index).squeeze(2)
