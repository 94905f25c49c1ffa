"""The one-slot oracle: the best decision of a stated set, found by trying all of them.

Shape legend: B networks, M devices, E servers, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.decisions import keep_best
from uara.control.exhaustive import least_total
from uara.control.joint import ROWS, every_split, refine_lengths
from uara.control.objective import total_remaining_s
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics

MOST_ASSOCIATIONS = 200_000  # about a minute per network of 11 devices and 3 servers


@dataclass(frozen=True)
class OracleResult:
    """The best decision of the search set."""

    decision: Decision
    total_remaining_s: Tensor  # (B,) the objective; see `uara.control.objective`
    search_set: str  # in words


@dataclass(frozen=True)
class Associations:
    """Every choice of servers in reach for the devices with a request, by number.

    A device without a request has one choice, its strongest server: it is ignored anyway.
    """

    options: Tensor  # (B, M, E) long, servers in reach first, in their order
    count: Tensor  # (B, M) long, how many of them count
    total: Tensor  # (B,) long, associations of a network

    @classmethod
    def of(cls, state: NetworkState) -> Associations:
        """List the choices of each device."""
        options = (~state.reachable).long().argsort(dim=-1, stable=True)
        strongest = state.gain.argmax(-1, keepdim=True).expand_as(options)
        options = torch.where(state.has_request[..., None], options, strongest)
        count = torch.where(state.has_request, state.reachable.sum(-1), 1)
        return cls(options, count, count.prod(1))

    def at(self, network: Tensor, number: Tensor) -> Tensor:
        """Write associations out, (K, M) long servers; `network` and `number` are (K,) long."""
        count = self.count[network]
        stride = count.cumprod(1) // count
        digit = (number[:, None] // stride) % count
        return self.options[network].gather(2, digit[..., None]).squeeze(-1)

    def chunks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk through all associations of all networks: (K,) networks and (K, M) servers."""
        end = self.total.cumsum(0)
        for first in range(0, int(end[-1]), rows):
            index = torch.arange(first, min(first + rows, int(end[-1])))
            network = torch.searchsorted(end, index, right=True)
            yield network, self.at(network, index - (end - self.total)[network])


class OneSlotOracle:
    """Decides as if the slot's choice were the last one, by trying everything in its search set.

    Objective: the predicted mean end-to-end latency of all requests, waiting ones included.
    Information: the state that every controller is given. Search set: every choice of servers in
    reach, times every allocation given, times every draft length (the same for all devices, from 0
    to the longest, and the allocation's own); then the draft lengths of the best are changed one
    device at a time, at its bandwidths, while that helps. So no controller that chooses servers by
    any rule and completes them by one of the allocations is better in a slot.
    """

    name = "oracle"
    observes = "network"

    def __init__(
        self,
        allocation: AllocationConfig,
        physics: Physics,
        allocations: Sequence[AllocationConfig] | None = None,
        most_associations: int = MOST_ASSOCIATIONS,
    ) -> None:
        """Set up the search set.

        Args:
            allocation: closed forms of the other rows of a table.
            physics: that predicts.
            allocations: those to try; by default `allocation` with every split of bandwidth.
            most_associations: E^M beyond which the search is refused.
        """
        if allocations is None:
            allocations = every_split(allocation)
        lengths = range(physics.config.max_draft_length + 1)
        configs = [
            config.model_copy(update={"draft_length": length})
            for config in allocations
            for length in (config.draft_length, *lengths)
        ]
        self.allocations = tuple(allocations)
        self._allocators = [Allocator(config, physics) for config in dict.fromkeys(configs)]
        self._physics = physics
        self._most = most_associations

    @property
    def search_set(self) -> str:
        """Say what is searched."""
        splits = ", ".join(dict.fromkeys(config.bandwidth for config in self.allocations))
        longest = self._physics.config.max_draft_length
        return (
            f"all associations in reach x bandwidth split ({splits}) x draft length (0 to "
            f"{longest} for all devices, and the allocation's own), lengths refined per device"
        )

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Remember nothing."""

    def decide(self, state: NetworkState) -> Decision:
        """Take the best decision of the search set."""
        return self.search(state).decision

    def observe(self, outcome: SlotOutcome) -> None:
        """Ignore the outcome."""

    def search(self, state: NetworkState) -> OracleResult:
        """Search the whole set.

        Args:
            state: B networks.

        Raises:
            UserError: if there are too many associations.
        """
        devices, servers = state.num_devices, state.num_servers
        if devices * math.log(servers) > math.log(self._most) + 1e-9:
            raise UserError(
                f"the oracle tries every association, and {devices} devices with {servers} servers "
                f"have {servers}^{devices}; at most {self._most} are allowed: take fewer devices, "
                "or hold controllers against the lower bound"
            )
        is_apart = self._physics.config.link.interference == "orthogonal"
        decision, least = (self._by_sets if is_apart else self._by_networks)(state)
        decision, least = refine_lengths(state, decision, least, self._physics)
        return OracleResult(decision, least, self.search_set)

    def _by_sets(self, state: NetworkState) -> tuple[Decision, Tensor]:
        """Price each set of devices once per server, which has a band of its own, and add up."""
        best, least = None, torch.full((state.num_networks,), torch.inf)
        everyone = torch.arange(state.num_networks)
        for allocator in self._allocators:
            server = least_total(state, partial(_price, allocator), ROWS)
            decision = allocator(state, server)
            cost = total_remaining_s(state, decision, self._physics)
            best, least = keep_best(best, least, everyone, decision, cost)
        assert best is not None, "there is an allocator"
        return best, least

    def _by_networks(self, state: NetworkState) -> tuple[Decision, Tensor]:
        """Price every association as a whole."""
        best, least = None, torch.full((state.num_networks,), torch.inf)
        for network, server in Associations.of(state).chunks(ROWS):
            wide = state.select(network)
            for allocator in self._allocators:
                decision = allocator(wide, server)
                cost = total_remaining_s(wide, decision, self._physics)
                best, least = keep_best(best, least, network, decision, cost)
        assert best is not None, "every network has an association"
        return best, least


def _price(allocator: Allocator, state: NetworkState, server: Tensor, placed: Tensor) -> Tensor:
    """Predict the objective of the placed devices alone, (B,) seconds."""
    view = state.with_(phase=torch.where(placed, state.phase, int(Phase.IDLE)))
    return total_remaining_s(view, allocator(view, server), allocator.physics)
