"""One-slot controllers that choose servers, the split of bands and draft lengths together.

Shape legend: B networks, M devices, E servers, K candidates, G draft lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from uara.control.allocation import JOINT, AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.decisions import keep_best, select_rows
from uara.control.objective import total_remaining_s
from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics

ROWS = 8192  # candidates predicted at once
MOST_ROUNDS = 20  # of moves and swaps; few networks take more than three


def every_split(allocation: AllocationConfig) -> tuple[AllocationConfig, ...]:
    """List an allocation with every split of bandwidth, its own first.

    The joint rule splits the compute of fluid servers as well and is left out.
    """
    splits = (allocation.bandwidth, *(rule for rule in BANDWIDTH_RULES if rule != JOINT))
    return tuple(
        allocation.model_copy(update={"bandwidth": split}) for split in dict.fromkeys(splits)
    )


def best_allocation(
    state: NetworkState, network: Tensor, server: Tensor, allocators: Sequence[Allocator]
) -> tuple[Decision, Tensor]:
    """Find each network's best decision among candidates, each completed by every allocator.

    Args:
        state: B networks.
        network: (K,) long, of the candidates; every network has one.
        server: (K, M) long.
        allocators: to try, all for the same physics.

    Returns:
        decisions of B networks, and their objectives (B,).
    """
    best, least = None, torch.full((state.num_networks,), torch.inf)
    for first in range(0, len(network), ROWS):
        rows = slice(first, first + ROWS)
        wide = state.select(network[rows])
        for allocator in allocators:
            decision = allocator(wide, server[rows])
            cost = total_remaining_s(wide, decision, allocator.physics)
            best, least = keep_best(best, least, network[rows], decision, cost)
    assert best is not None, "every network has a candidate"
    return best, least


def refine_lengths(
    state: NetworkState, decision: Decision, least: Tensor, physics: Physics
) -> tuple[Decision, Tensor]:
    """Change the draft length of one device after the other while the objective falls.

    Args:
        state: B networks.
        decision: to start from.
        least: (B,) its objective.
        physics: holds the longest length.
    """
    lengths = torch.arange(physics.config.max_draft_length + 1)
    rows, devices = torch.arange(state.num_networks), state.num_devices
    network = rows.repeat_interleave(devices * len(lengths))
    device = torch.arange(devices).repeat_interleave(len(lengths)).repeat(len(rows))
    length = lengths.repeat(len(rows) * devices)
    wide = state.select(network)
    while True:
        tried = select_rows(decision, network)
        changed = tried.draft_length.scatter(1, device[:, None], length[:, None])
        tried = replace(tried, draft_length=changed)
        cost = total_remaining_s(wide, tried, physics)
        better, value = keep_best(decision, least, network, tried, cost)
        if not (value < least).any():
            return decision, least
        decision, least = better, value


def neighbours(state: NetworkState, server: Tensor) -> tuple[Tensor, Tensor]:
    """List all associations that one move or one swap of requests makes, in reach.

    Args:
        state: B networks.
        server: (B, M) long.

    Returns:
        networks (K,) long and servers (K, M) long.
    """
    num, devices = server.shape
    first, second = torch.triu_indices(devices, devices, 1)
    swapped = server[:, None].repeat(1, len(first), 1)
    pair = torch.stack((first, second), 1).expand(num, -1, -1)
    swapped.scatter_(2, pair, swapped.gather(2, pair.flip(2)))
    device = torch.arange(devices).repeat_interleave(state.num_servers)
    choice = torch.arange(state.num_servers).repeat(devices)
    moved = server[:, None].repeat(1, len(device), 1)
    moved.scatter_(2, device.expand(num, -1)[..., None], choice.expand(num, -1)[..., None])
    tried = torch.cat((swapped, moved), 1)
    differs = (tried != server[:, None]) & state.has_request[:, None]
    in_reach = state.reachable[:, None].expand(-1, tried.shape[1], -1, -1)
    in_reach = in_reach.gather(3, tried[..., None]).squeeze(-1) | ~state.has_request[:, None]
    network, row = (differs.any(2) & in_reach.all(2)).nonzero().unbind(1)
    return network, tried[network, row]


class JointController:
    """Takes a rule's servers, the best split of bands for them and the best lengths of all devices.

    The rule is asked twice, with drafts and without, since a hopeless link that drafts wants
    another server than one that need not. With `descends`, servers are then changed by single moves
    and swaps, each judged by the whole decision that it leads to, for as long as the objective
    falls. Objective, information and allocations are those of the one-slot oracle, so it is never
    below that.
    """

    observes = "network"

    def __init__(
        self,
        name: str,
        rule: str,
        allocation: AllocationConfig,
        physics: Physics,
        *,
        descends: bool,
    ) -> None:
        """Set up what is tried.

        Args:
            name: of the controller.
            rule: that chooses the servers to start from.
            allocation: closed forms; every split of bandwidth is tried in the place of its own.
            physics: that predicts.
            descends: whether servers are changed as well.
        """
        self.name = name
        self._rule = ASSOCIATION_RULES[rule]
        without = allocation.model_copy(update={"draft_length": 0})
        self._starts = [Allocator(config, physics) for config in (allocation, without)]
        self._allocators = [Allocator(config, physics) for config in every_split(allocation)]
        self._physics, self._descends = physics, descends
        self._generator = torch.Generator()

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Take the generator that the rule draws from."""
        self._generator = generator

    def decide(self, state: NetworkState) -> Decision:
        """Choose everything."""
        server = torch.cat([self._rule(state, start, self._generator) for start in self._starts])
        network = torch.arange(state.num_networks).repeat(len(self._starts))
        decision, least = best_allocation(state, network, server, self._allocators)
        if self._descends:
            decision, least = self._descend(state, decision, least)
        return refine_lengths(state, decision, least, self._physics)[0]

    def observe(self, outcome: SlotOutcome) -> None:
        """Ignore the outcome."""

    def _descend(
        self, state: NetworkState, decision: Decision, least: Tensor
    ) -> tuple[Decision, Tensor]:
        """Take the best move or swap of each network until none helps."""
        rows = torch.arange(state.num_networks)
        for _ in range(MOST_ROUNDS):
            part = state.select(rows)
            network, server = neighbours(part, decision.server[rows])
            if len(network) == 0:
                break
            asks = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, network, True)
            rows, compact = rows[asks], (asks.long().cumsum(0) - 1)[network]
            found, value = best_allocation(state.select(rows), compact, server, self._allocators)
            better = value < least[rows]
            decision, least = keep_best(decision, least, rows, found, value)
            rows = rows[better]
            if len(rows) == 0:
                break
        return decision, least
