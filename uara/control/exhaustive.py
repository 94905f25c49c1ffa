"""The best association of one slot, by trying all: the bound that other rules are measured by.

Shape legend: B networks, M devices, E servers, R requests at most, A = E^R associations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.scores import best_in_reach, keep_or
from uara.control.server_cost import server_cost, take_devices
from uara.errors import UserError
from uara.network import NetworkState

MAX_ASSOCIATIONS = 200_000
CHUNK_PAIRS = 2_000_000  # devices x servers of all networks that are priced at once


Price = Callable[[NetworkState, Tensor, Tensor], Tensor]  # of servers (B, M), placed (B, M): (B,)


def exhaustive(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the association of least predicted total E2E, waiting requests counted.

    Raises:
        UserError: if there are too many associations.
    """
    requests, servers = int(state.has_request.sum(1).max()), state.num_servers
    if servers**requests > MAX_ASSOCIATIONS:
        raise UserError(
            f"exhaustive would try {servers}^{requests} associations of {requests} requests, at "
            f"most {MAX_ASSOCIATIONS:,} are allowed; take tma_moves, or fewer devices"
        )

    def price(part: NetworkState, server: Tensor, placed: Tensor) -> Tensor:
        cost = server_cost(part, allocator)
        return (cost.remaining_s(server, placed) * cost.weight).sum(1)

    rows = CHUNK_PAIRS // (max(1, requests) * servers)
    is_apart = allocator.physics.config.link.interference == "orthogonal"
    return least_total(state, price, max(1, rows), is_apart=is_apart)


def least_total(state: NetworkState, price: Price, rows: int, *, is_apart: bool = True) -> Tensor:
    """Find the association of least price, (B, M) long; the strongest servers without a request.

    Where servers have bands of their own a server's time depends on its own devices alone: each of
    the 2^R sets is priced once per server, and associations add up their servers' sets.

    Args:
        state: B networks.
        price: of the placed devices of some networks, on their servers.
        rows: networks priced at once.
        is_apart: whether servers have bands of their own.
    """
    fallback = keep_or(state, best_in_reach(state.gain, state))
    requests, servers = int(state.has_request.sum(1).max()), state.num_servers
    if requests == 0:
        return fallback
    index = state.has_request.long().argsort(dim=1, descending=True, stable=True)[:, :requests]
    view = take_devices(state, index)
    place = servers ** torch.arange(requests - 1, -1, -1)
    choices = torch.arange(servers**requests)[:, None] // place % servers  # (A, R)
    total_s = (_by_sets if is_apart else _by_networks)(view, price, rows, choices)
    return fallback.scatter(1, index, choices[total_s.argmin(1)])


def _by_sets(state: NetworkState, price: Price, rows: int, choices: Tensor) -> Tensor:
    """Add up the prices of servers' sets, (B, A); infinite out of reach."""
    num, devices, servers = state.gain.shape
    bits = 2 ** torch.arange(devices)
    members = torch.arange(2**devices)[:, None] // bits % 2 == 1  # (2^R, R)
    sets = len(members)
    found = []
    cases = num * sets * servers  # the server varies fastest
    for first in range(0, cases, rows):
        case = torch.arange(first, min(first + rows, cases))
        part = state.select(case // (servers * sets))
        placed = members[case // servers % sets] & part.has_request
        server = (case % servers)[:, None].expand_as(placed)
        found.append(_price(part, price, server, placed))
    cost_s = torch.cat(found).view(num, sets, servers)
    total_s = torch.zeros(num, len(choices), dtype=cost_s.dtype)
    for number in range(servers):
        total_s += cost_s[:, (choices == number).long() @ bits, number]
    return total_s


def _by_networks(state: NetworkState, price: Price, rows: int, choices: Tensor) -> Tensor:
    """Price every association as a whole, (B, A); infinite out of reach."""
    num, found = state.num_networks, []
    cases = num * len(choices)
    for first in range(0, cases, rows):
        case = torch.arange(first, min(first + rows, cases))
        part = state.select(case // len(choices))
        found.append(_price(part, price, choices[case % len(choices)], part.has_request))
    return torch.cat(found).view(num, len(choices))


def _price(state: NetworkState, price: Price, server: Tensor, placed: Tensor) -> Tensor:
    """Price placements, (B,); infinite where a placed device is out of reach."""
    in_reach = state.reachable.gather(2, server.unsqueeze(-1)).squeeze(-1)
    return price(state, server, placed).masked_fill((placed & ~in_reach).any(1), torch.inf)
