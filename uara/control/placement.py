"""Places requests one after the other where own time, charges and harm to others are least.

Shape legend: B networks, M devices, E servers, T turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.charges import Charges
from uara.control.server_cost import ServerCost, server_cost
from uara.network import NetworkState

ROUNDING = 1e-6  # of a score: a smaller gain moves nobody


@dataclass(frozen=True)
class Placement:
    """Servers for the requests of one state, found by insertions and offered moves."""

    state: NetworkState
    cost: ServerCost
    charges: Charges
    harm_weight: float
    best_gain: Tensor  # (B, M), the strongest goes first

    @classmethod
    def of(
        cls,
        state: NetworkState,
        allocator: Allocator,
        charges: Charges,
        harm_weight: float,
        *,
        native: bool | None = None,
    ) -> Placement:
        """Price a state.

        Args:
            state: what is known.
            allocator: its quick allocation is what is predicted.
            charges: on top of time.
            harm_weight: of the time that others lose.
            native: with compiled costs; None: where they can.
        """
        cost = server_cost(state, allocator, native=native)
        return cls(state, cost, charges, harm_weight, state.gain.amax(-1))

    def insert(self, server: Tensor, who: Tensor) -> Tensor:
        """Place requests that have no server beside those that have one, (B, M) long.

        Args:
            server: (B, M) long; read of those that have one.
            who: (B, M) bool, without a server.
        """
        return self._relocate(server, self.state.has_request & ~who, who, 0.0)

    def offer(self, server: Tensor, who: Tensor, margin_s: float) -> Tensor:
        """Offer a move to each of `who` (B, M) bool; return the servers (B, M) long.

        Args:
            server: (B, M) long.
            who: to whom.
            margin_s: that a move has to gain.
        """
        return self._relocate(server, self.state.has_request, who, margin_s)

    def _relocate(self, server: Tensor, placed: Tensor, who: Tensor, margin_s: float) -> Tensor:
        turns = int(who.sum(1).max())
        if turns == 0:
            return server
        rank = torch.where(who, self.best_gain, -1.0)
        order = rank.argsort(dim=1, descending=True, stable=True)[:, :turns]
        allowed = self.state.reachable & who.unsqueeze(-1)
        if not self.charges.are_none:
            return self._relocate_charged(server, placed, order, allowed, margin_s)
        server, _ = self.cost.relocate(
            server, placed, order, allowed, harm_weight=self.harm_weight, margin_s=margin_s
        )
        return server

    def _relocate_charged(
        self, server: Tensor, placed: Tensor, order: Tensor, allowed: Tensor, margin_s: float
    ) -> Tensor:
        """Take turns as `ServerCost.relocate` does, with charges on each own time."""
        weights, starts = self.cost.weight.gather(1, order), placed.gather(1, order)
        may_go = allowed[torch.arange(len(server)).unsqueeze(1), order]
        may_start = may_go.any(-1)
        charges = self.charges.in_order(order)
        for turn, device in enumerate(order.unbind(1)):
            others_s, own_s = self.cost.join_s(server, placed, device)
            charged_s = charges.add(own_s, turn)
            score = weights[:, turn : turn + 1] * charged_s + self.harm_weight * others_s
            best_s, best = score.masked_fill(~may_go[:, turn], torch.inf).min(1, keepdim=True)
            who = device.unsqueeze(1)
            current = server.gather(1, who)
            current_s = score.gather(1, current)
            stays = starts[:, turn : turn + 1] & may_go[:, turn].gather(1, current)
            stays &= current_s - best_s <= margin_s + ROUNDING * current_s
            moves = may_start[:, turn : turn + 1] & ~stays
            server = server.scatter(1, who, torch.where(moves, best, current))
            placed = placed.scatter(1, who, starts[:, turn : turn + 1] | moves)
        return server
