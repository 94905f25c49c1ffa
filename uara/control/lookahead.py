"""Look-ahead: plays out what a base controller would do after each of several first decisions.

Shape legend: B networks, M devices, E servers, C candidates of all networks, F futures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.decisions import (
    join_rows,
    least_of_each,
    select_rows,
    take_where,
    tensors_of,
)
from uara.network import Controller, Decision, NetworkState, Phase, SlotOutcome

ROWS = 2048  # copies played at once
LEAST_SAVING_S = 1e-3  # float32 noise of a cost


class Simulator(Protocol):
    """Plays copies of the networks that a controller is deciding for right now."""

    def play(
        self,
        networks: Tensor,
        futures: Tensor | None,
        first: Decision,
        player: Controller,
        slots: int,
    ) -> Tensor:
        """Play copies and return what they cost.

        Args:
            networks: (K,) long, the network that each copy is of.
            futures: (K,) int64 keys of what is not known yet: later requests, how long running
                answers still get; equal keys of a network give equal futures. None: the true
                future, tracks and outages included.
            first: K decisions for the slot that begins.
            player: decides from then on; it is reset before.
            slots: in which further requests arrive; then it goes on until all are answered. A
                rollout that ended earlier would reward leaving work to those after it.

        Returns:
            (K,) seconds that requests wait or are served.
        """
        ...


class LookAheadConfig(BaseModel):
    """How far and how wide to look ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    futures: int = Field(4, gt=0, description="sampled futures; all candidates meet the same ones")
    slots: int = Field(
        20, gt=0, description="slots in which requests arrive; then all are played to their ends"
    )
    changes: Literal["new", "all"] = Field(
        "new", description="whose servers are tried: devices with a new request, or all"
    )
    defer: bool = Field(True, description="also try to let an uploading device pause for the slot")
    standard_errors: float = Field(
        1.0, ge=0, description="by how many a candidate must be better than the base's decision"
    )


@dataclass(frozen=True)
class _Candidates:
    """First decisions that differ from the base's own in one device."""

    network: Tensor  # (C,) long, rising
    decision: Decision  # C rows


class LookAhead:
    """Improves on a base controller by rollouts (a one-step policy improvement).

    Candidates are the base's own decision, the same with one device at another server in reach,
    and with one uploading device paused; the closed forms then share out bandwidth and draft
    lengths. Each is played to the horizon by the base under the same futures, and the least mean
    cost wins if it is clearly below that of the base's own.
    """

    observes = "network"

    def __init__(
        self,
        base: Controller,
        player: Controller,
        allocator: Allocator,
        simulator: Simulator,
        config: LookAheadConfig | None = None,
        *,
        true_future: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            base: decides where nothing better is found.
            player: another object like `base`, for the rollouts, where it starts without memory.
            allocator: completes changed servers to a decision.
            simulator: of the networks that are decided for.
            config: how far and how wide.
            true_future: look at the one that will come: a bound, no controller.
        """
        self.name = f"{'hindsight' if true_future else 'lookahead'}({base.name})"
        self.config = config or LookAheadConfig()
        self._base, self._player = base, player
        self._allocator, self._simulator = allocator, simulator
        self._true_future = true_future
        self._generator = torch.Generator()

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Reset the base; keys of futures are drawn from a generator of their own."""
        self._base.reset(mask, generator)
        self._generator = torch.Generator().manual_seed(generator.initial_seed())

    def observe(self, outcome: SlotOutcome) -> None:
        """Let the base learn."""
        self._base.observe(outcome)

    def decide(self, state: NetworkState) -> Decision:
        """Take the base's decision or the change of it that plays out best."""
        own = self._base.decide(state)
        found = self._candidates(state, own)
        if len(found.network) == 0:
            return own
        asked = torch.unique_consecutive(found.network)
        count = 1 if self._true_future else self.config.futures
        keys = torch.randint(2**62, (state.num_networks, count), generator=self._generator)
        network = torch.cat((asked, found.network))
        first = join_rows((select_rows(own, asked), found.decision))
        cost = self._play(network, keys[network], first)
        own_cost = torch.full((state.num_networks, count), torch.inf, dtype=cost.dtype)
        own_cost[asked] = cost[: len(asked)]
        saved = own_cost[found.network] - cost[len(asked) :]
        return self._choose(own, found, saved)

    def _choose(self, own: Decision, found: _Candidates, saved: Tensor) -> Decision:
        """Take each network's best candidate where it clearly saves time; `saved` is (C, F)."""
        mean = saved.mean(1)
        error = saved.std(1) / saved.shape[1] ** 0.5 if saved.shape[1] > 1 else 0.0
        is_clear = mean > self.config.standard_errors * error + LEAST_SAVING_S
        cost = torch.where(is_clear, -mean, torch.inf)
        least, row = least_of_each(found.network, cost, len(own.server))
        return take_where(least < 0, select_rows(found.decision, row), own)

    def _play(self, network: Tensor, keys: Tensor, first: Decision) -> Tensor:
        """Play all candidates under all futures, (C, F)."""
        count = keys.shape[1]
        candidate = torch.arange(len(network)).repeat_interleave(count)
        futures = keys.flatten()
        parts = [
            self._simulator.play(
                network[candidate[rows]],
                None if self._true_future else futures[rows],
                select_rows(first, candidate[rows]),
                self._player,
                self.config.slots,
            )
            for rows in _chunks(len(candidate))
        ]
        return torch.cat(parts).view(-1, count)

    def _candidates(self, state: NetworkState, own: Decision) -> _Candidates:
        """List the changes to try."""
        considered = state.has_request
        if self.config.changes == "new":
            considered = considered & (state.server < 0)
        elsewhere = torch.arange(state.num_servers) != own.server[..., None]
        moves = (considered[..., None] & state.reachable & elsewhere).nonzero()
        network, device, server = moves.unbind(1)
        moved = own.server[network].scatter(1, device[:, None], server[:, None])
        decision = self._complete(state.select(network), select_rows(own, network), moved)
        parts = [(network, decision)]
        if self.config.defer:
            parts.append(self._pauses(state, own, considered))
        order = torch.cat([network for network, _ in parts]).argsort(stable=True)
        joined = join_rows([decision for _, decision in parts])
        return _Candidates(
            torch.cat([network for network, _ in parts])[order], select_rows(joined, order)
        )

    def _pauses(
        self, state: NetworkState, own: Decision, considered: Tensor
    ) -> tuple[Tensor, Decision]:
        """Let one uploading device send nothing, so that the others of its server send faster."""
        sends = state.has_request & (state.phase == int(Phase.UPLOADING))
        network, device = (considered & sends).nonzero().unbind(1)
        view = state.select(network)
        at = device[:, None]
        view = view.with_(phase=view.phase.scatter(1, at, int(Phase.IDLE)))
        own = select_rows(own, network)
        decision = self._complete(view, own, own.server)
        return network, replace(
            decision,
            bandwidth_hz=decision.bandwidth_hz.scatter(1, at, 0.0),
            power_w=decision.power_w.scatter(1, at, 0.0),
        )

    def _complete(self, state: NetworkState, own: Decision, server: Tensor) -> Decision:
        """Share out bandwidth, power and lengths anew; what the closed forms leave open stays."""
        if len(server) == 0:
            return own
        return replace(own, **tensors_of(self._allocator(state, server)))


def _chunks(count: int) -> Iterator[slice]:
    return (slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS))
