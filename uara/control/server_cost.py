"""What placing devices on servers costs: predicted remaining seconds of all that are placed.

Shape legend: B networks, M devices, E servers, K devices of a view in which some occur twice.

Where each server has a band of its own, devices of different servers do not touch each other, so
one view of the network in which a device stands on every server at once prices all its choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.native_cost import TIE, NativeCost, knows
from uara.native import compiler
from uara.network import NetworkState, Phase
from uara.prediction import predict
from uara.serving.batching import sum_by_server

_DEVICE_FIELDS = (
    *("gain", "reachable", "phase", "task", "age_s", "waiting_requests", "prompt_tokens"),
    *("upload_bits", "tokens_so_far", "expected_remaining_tokens", "acceptance", "server"),
    *("kv_tokens", "draft_time_s", "draft_power_w", "power_max_w", "position_m", "battery_j"),
    "kv_arriving_tokens",
)


class ServerCost(Protocol):
    """Prices placements of one state; a device counts with itself and what waits behind it."""

    @property
    def weight(self) -> Tensor:
        """Requests whose time a device's remaining time is, (B, M); 0 where it has none."""
        ...

    def remaining_s(self, server: Tensor, placed: Tensor) -> Tensor:
        """Predict the remaining time of those placed, (B, M) seconds; 0 for the others.

        Args:
            server: (B, M) long.
            placed: (B, M) bool; the others do not exist.
        """
        ...

    def join_s(self, server: Tensor, placed: Tensor, device: Tensor) -> tuple[Tensor, Tensor]:
        """Price each server for one device per network, taken off the server where it is.

        Args:
            server: (B, M) long.
            placed: (B, M) bool.
            device: (B,) long, with a request.

        Returns:
            what the others' weighted remaining times add up to if it joins, and its own remaining
            time, not weighted, (B, E) seconds each.
        """
        ...

    def relocate(
        self,
        server: Tensor,
        placed: Tensor,
        order: Tensor,
        allowed: Tensor,
        *,
        harm_weight: float = 1.0,
        margin_s: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Offer the devices of `order`, one after the other, the server that is best for them.

        A server's score is the device's own weighted time plus `harm_weight` times what the others
        lose. Those not placed yet are placed; those that are move where the score falls by more
        than `margin_s` and by more than rounding. Ties go to the lowest index.

        Args:
            server: (B, M) long.
            placed: (B, M) bool.
            order: (B, T) long, who has a turn; devices without a request are passed over.
            allowed: (B, M, E) bool; a device that may go nowhere stays as it is.
            harm_weight: 1 minimises the total, 0 is selfish.
            margin_s: that a move has to gain.

        Returns:
            servers (B, M) long, and who changed its server, (B, M) bool.
        """
        ...

    def swap(self, server: Tensor, order: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Let each device in turn change places with the first one behind it where that helps.

        Helping means that the weighted total of all requests falls by more than rounding.

        Args:
            server: (B, M) long, of all devices with a request.
            order: (B, M) long, of all devices.
            allowed: (B, M, E) bool.

        Returns:
            servers (B, M) long, and who changed its server, (B, M) bool.
        """
        ...


def server_cost(
    state: NetworkState, allocator: Allocator, *, native: bool | None = None
) -> ServerCost:
    """Price placements under an allocator's quick allocation.

    Args:
        state: what is known.
        allocator: bandwidth, power and the length that rules assume.
        native: with compiled code, which knows the common physics; None: where it can.
    """
    if native is None:
        native = knows(state, allocator) and compiler() is not None
    return NativeCost.of(state, allocator) if native else PredictedCost(state, allocator)


def until_settled(
    state: NetworkState,
    allocator: Allocator,
    server: Tensor,
    sweep: Callable[[ServerCost, NetworkState, Tensor], tuple[Tensor, Tensor]],
    rounds: int,
) -> Tensor:
    """Sweep each network until nobody in it moves, (B, M) long.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        server: (B, M) long, the start.
        sweep: maps the cost, the state and the servers of some networks to their servers and who
            moved, (B, M) bool.
        rounds: at most.
    """
    rows = torch.arange(state.num_networks)
    for _ in range(rounds):
        part = state.select(rows)
        found, moved = sweep(server_cost(part, allocator), part, server[rows])
        server = server.index_copy(0, rows, found)
        rows = rows[moved.any(1)]
        if len(rows) == 0:
            break
    return server


def take_devices(state: NetworkState, index: Tensor) -> NetworkState:
    """Make a view of K devices, some of which may be the same, by their indices (B, K) long."""
    taken = {}
    for name in _DEVICE_FIELDS:
        value = getattr(state, name)
        if value is None:
            continue
        if value.dim() == 2:
            taken[name] = value.gather(1, index)
        else:
            taken[name] = value.gather(1, index.unsqueeze(-1).expand(-1, -1, value.shape[2]))
    return replace(state, **taken)


class PredictedCost:
    """Prices with `predict`: for every mode, service, link and rule; see `ServerCost`."""

    def __init__(self, state: NetworkState, allocator: Allocator) -> None:
        """Keep what is asked about."""
        self.state = state
        self.allocator = allocator

    @cached_property
    def weight(self) -> Tensor:
        """Requests per device, (B, M)."""
        return (1 + self.state.waiting_requests) * self.state.has_request

    @cached_property
    def _is_apart(self) -> bool:
        return self.allocator.physics.config.link.interference == "orthogonal"

    def remaining_s(self, server: Tensor, placed: Tensor) -> Tensor:
        """See `ServerCost.remaining_s`."""
        return self._predicted_s(self.state, server, placed & self.state.has_request)

    def _predicted_s(self, view: NetworkState, server: Tensor, placed: Tensor) -> Tensor:
        """Predict the placed devices of a view, whose others have no request."""
        view = view.with_(phase=torch.where(placed, view.phase, int(Phase.IDLE)))
        decision = self.allocator.quick(view, server)
        seconds = predict(view, decision, self.allocator.physics, "request").remaining_s
        return torch.where(placed, seconds, 0.0)

    def join_s(self, server: Tensor, placed: Tensor, device: Tensor) -> tuple[Tensor, Tensor]:
        """See `ServerCost.join_s`."""
        others = (placed & self.state.has_request).scatter(1, device[:, None], False)
        joined = self._join_apart if self._is_apart else self._join_together
        return joined(server, others, device)

    def _join_apart(self, server: Tensor, others: Tensor, device: Tensor) -> tuple[Tensor, Tensor]:
        """Let the device stand on all servers at once: they do not touch each other."""
        num, servers, devices = self.state.num_networks, self.state.num_servers, server.shape[1]
        copies = device[:, None].expand(-1, servers)
        index = torch.cat((torch.arange(devices).expand(num, -1), copies), 1)
        everywhere = torch.arange(servers).expand(num, -1)
        seconds = self._predicted_s(
            take_devices(self.state, index),
            torch.cat((server, everywhere), 1),
            torch.cat((others, torch.ones_like(copies, dtype=torch.bool)), 1),
        )
        with_it, own_s = seconds[:, :devices], seconds[:, devices:]
        before_s = sum_by_server(self.remaining_s(server, others) * self.weight, server, servers)
        after_s = sum_by_server(with_it * self.weight, server, servers)
        return after_s - before_s + before_s.sum(1, keepdim=True), own_s

    def _join_together(
        self, server: Tensor, others: Tensor, device: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict the whole network once per server."""
        num, servers = self.state.num_networks, self.state.num_servers
        copies = torch.arange(num).repeat_interleave(servers)
        who = device[copies, None]
        tried = server[copies].scatter(1, who, torch.arange(servers).repeat(num)[:, None])
        seconds = self._predicted_s(
            self.state.select(copies), tried, others[copies].scatter(1, who, True)
        )
        others_s = torch.where(others[copies], seconds * self.weight[copies], 0.0).sum(1)
        return others_s.view(num, servers), seconds.gather(1, who).view(num, servers)

    def relocate(
        self,
        server: Tensor,
        placed: Tensor,
        order: Tensor,
        allowed: Tensor,
        *,
        harm_weight: float = 1.0,
        margin_s: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `ServerCost.relocate`."""
        start, has = server, self.state.has_request
        placed = placed & has
        for device in order.unbind(1):
            who = device[:, None]
            if not has.gather(1, who).any():
                continue
            others_s, own_s = self.join_s(server, placed, device)
            score = self.weight.gather(1, who) * own_s + harm_weight * others_s
            may_go = allowed.gather(1, who.unsqueeze(-1).expand(-1, 1, allowed.shape[2])).squeeze(1)
            best_s, best = score.masked_fill(~may_go, torch.inf).min(1, keepdim=True)
            current = server.gather(1, who)
            gain_s = score.gather(1, current) - best_s
            own_s = self.weight.gather(1, who) * own_s.gather(1, current)
            total_s = others_s.gather(1, current) + own_s
            may_stay = placed.gather(1, who) & may_go.gather(1, current)
            moves = ~may_stay | (gain_s > margin_s + TIE * total_s)
            moves &= has.gather(1, who) & may_go.any(1, keepdim=True)
            server = server.scatter(1, who, torch.where(moves, best, current))
            placed = placed.scatter(1, who, placed.gather(1, who) | moves)
        return server, server != start

    def swap(self, server: Tensor, order: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """See `ServerCost.swap`."""
        start = server
        for turn in range(order.shape[1] - 1):
            first, behind = order[:, turn, None], order[:, turn + 1 :]
            here, there = server.gather(1, first), server.gather(1, behind)
            goes = _of(allowed, first).squeeze(1)
            comes = _of(allowed, behind).gather(2, here[:, None].expand_as(there[..., None]))
            may = (there != here) & goes.gather(1, there) & comes.squeeze(2)
            may &= self.state.has_request.gather(1, first)
            may &= self.state.has_request.gather(1, behind)
            network, column = may.nonzero().unbind(1)
            if len(network) == 0:
                continue
            pair = torch.stack((first[network, 0], behind[network, column]), 1)
            good = torch.zeros_like(may)
            good[network, column] = self._swaps_help(server, network, pair)
            partner = behind.gather(1, good.float().argmax(1, keepdim=True))
            both = torch.cat((first, partner), 1)
            swapped = server.scatter(1, both, server.gather(1, both.flip(1)))
            server = torch.where(good.any(1, keepdim=True), swapped, server)
        return server, server != start

    def _swaps_help(self, server: Tensor, network: Tensor, pair: Tensor) -> Tensor:
        """Tell for pairs of devices of different servers whether changing places helps, (K,) bool.

        Args:
            server: (B, M) long.
            network: (K,) long.
            pair: (K, 2) long, the devices.
        """
        has = self.state.has_request
        now_s = self.remaining_s(server, has) * self.weight
        now, ends = server[network], server[network].gather(1, pair)
        # With bands of their own, nobody but the devices of the two servers is touched.
        touched = (now[..., None] == ends[:, None]).any(2) if self._is_apart else has[network]
        touched = touched & has[network]
        index = touched.long().argsort(dim=1, descending=True, stable=True)
        index = index[:, : int(touched.sum(1).max())]
        tried = now.scatter(1, pair, ends.flip(1)).gather(1, index)
        view = take_devices(self.state.select(network), index)
        then_s = self._predicted_s(view, tried, touched.gather(1, index))
        then_s = then_s * self.weight[network].gather(1, index)
        gain_s = torch.where(touched, now_s[network], 0.0).sum(1) - then_s.sum(1)
        return gain_s > TIE * now_s.sum(1)[network]


def _of(pairs: Tensor, device: Tensor) -> Tensor:
    """Take the rows of (B, M, E) of some devices (B, K), (B, K, E)."""
    return pairs.gather(1, device[..., None].expand(-1, -1, pairs.shape[2]))
