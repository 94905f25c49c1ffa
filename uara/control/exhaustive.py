"""The best association of one slot, by trying all: the bound that other rules are measured by.

Shape legend: B networks, M devices, E servers, R requests at most, A = E^R associations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.scores import best_in_reach, keep_or
from uara.control.server_cost import server_cost, take_devices
from uara.errors import UserError
from uara.network import NetworkState

MAX_ASSOCIATIONS = 200_000
CHUNK_PAIRS = 2_000_000  # devices x servers of all networks that are priced at once


def exhaustive(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the association of least predicted total E2E, waiting requests counted.

    Where servers have bands of their own a server's time depends on its own devices alone: each of
    the 2^R sets is priced once per server, and associations add up their servers' sets.

    Raises:
        UserError: if there are too many associations.
    """
    fallback = keep_or(state, best_in_reach(state.gain, state))
    requests, servers = int(state.has_request.sum(1).max()), state.num_servers
    if requests == 0:
        return fallback
    if servers**requests > MAX_ASSOCIATIONS:
        raise UserError(
            f"exhaustive would try {servers}^{requests} associations of {requests} requests, at "
            f"most {MAX_ASSOCIATIONS:,} are allowed; take tma_moves, or fewer devices"
        )
    index = state.has_request.long().argsort(dim=1, descending=True, stable=True)[:, :requests]
    view = take_devices(state, index)
    place = servers ** torch.arange(requests - 1, -1, -1)
    choices = torch.arange(servers**requests)[:, None] // place % servers  # (A, R)
    is_apart = allocator.physics.config.link.interference == "orthogonal"
    total_s = (_by_sets if is_apart else _by_networks)(view, allocator, choices)
    return fallback.scatter(1, index, choices[total_s.argmin(1)])


def _by_sets(state: NetworkState, allocator: Allocator, choices: Tensor) -> Tensor:
    """Add up the costs of servers' sets, (B, A) seconds; infinite out of reach."""
    num, devices, servers = state.gain.shape
    bits = 2 ** torch.arange(devices)
    members = torch.arange(2**devices)[:, None] // bits % 2 == 1  # (2^R, R)
    cases = num * len(members) * servers  # the network varies slowest, the server fastest
    chunk = max(1, CHUNK_PAIRS // (devices * servers))
    cost_s = torch.cat(
        [
            _price_sets(state, allocator, members, torch.arange(first, min(first + chunk, cases)))
            for first in range(0, cases, chunk)
        ]
    ).view(num, len(members), servers)
    total_s = torch.zeros(num, len(choices), dtype=cost_s.dtype)
    for server in range(servers):
        total_s += cost_s[:, (choices == server).long() @ bits, server]
    return total_s


def _price_sets(state: NetworkState, allocator: Allocator, members: Tensor, rows: Tensor) -> Tensor:
    """Price cases of network, set and server, (cases,) seconds."""
    servers, sets = state.num_servers, len(members)
    part = state.select(rows // (servers * sets))
    placed = members[rows // servers % sets] & part.has_request
    server = (rows % servers)[:, None].expand_as(placed)
    cost = server_cost(part, allocator)
    seconds = (cost.remaining_s(server, placed) * cost.weight).sum(1)
    in_reach = part.reachable.gather(2, server.unsqueeze(-1)).squeeze(-1)
    return seconds.masked_fill((placed & ~in_reach).any(1), torch.inf)


def _by_networks(state: NetworkState, allocator: Allocator, choices: Tensor) -> Tensor:
    """Price every association as a whole, (B, A) seconds; infinite out of reach."""
    num, devices, servers = state.gain.shape
    cases, chunk = num * len(choices), max(1, CHUNK_PAIRS // (devices * servers))
    found = []
    for first in range(0, cases, chunk):
        rows = torch.arange(first, min(first + chunk, cases))
        part, server = state.select(rows // len(choices)), choices[rows % len(choices)]
        cost = server_cost(part, allocator)
        seconds = (cost.remaining_s(server, part.has_request) * cost.weight).sum(1)
        in_reach = part.reachable.gather(2, server.unsqueeze(-1)).squeeze(-1)
        is_out = (part.has_request & ~in_reach).any(1)
        found.append(seconds.masked_fill(is_out, torch.inf))
    return torch.cat(found).view(num, len(choices))
