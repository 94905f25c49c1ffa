"""Association as a matching of devices and the places that servers offer.

Shape legend: B networks, M devices, E servers, Q places at most on one server.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.scores import best_in_reach, keep_or
from uara.control.server_cost import server_cost, take_devices
from uara.network import NetworkState
from uara.serving.batching import sum_by_server

Quota = Literal["equal", "speed"]
OUT_OF_REACH_S = 1e9  # far above any time, so that as few as possible are left without a place


def quotas(state: NetworkState, quota: Quota) -> Tensor:
    """Count the places of each server, together at least as many as requests, (B, E) long.

    Args:
        state: requests and speeds.
        quota: `equal`: requests over servers, rounded up; `speed`: in proportion to 1 / pass time.
    """
    speed = 1 / state.forward_fixed_s
    if quota == "equal":
        speed = torch.ones_like(speed)
    requests = state.has_request.sum(1, keepdim=True)
    # In double, and a hair less: a whole number of places is not rounded up to the next.
    share = speed.double() / speed.double().sum(1, keepdim=True)
    return (requests * share - 1e-6).ceil().long()


def gs_quota(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    quota: Quota = "equal",
) -> Tensor:
    """Match new requests and servers by deferred acceptance (Gale and Shapley, 1962).

    Devices propose in the order of gain, and a server keeps the strongest up to its quota. Running
    requests stay and take places. Who is refused by all in reach takes the strongest server.

    Args:
        state: what is known.
        allocator: not asked.
        generator: not asked.
        quota: how many places a server has.
    """
    servers = state.num_servers
    current = keep_or(state, torch.full_like(state.server, -1))
    stays = state.has_request & (current >= 0)
    taken = sum_by_server(stays.long(), current.clamp_min(0), servers)
    free = (quotas(state, quota) - taken).clamp_min(0)
    reach_gain = state.gain.masked_fill(~state.reachable, -1.0)
    preferred = reach_gain.argsort(dim=2, descending=True, stable=True)
    in_reach = state.reachable.sum(2)
    is_new = state.has_request & ~stays
    asked = torch.zeros_like(state.server)  # how many servers have refused a device
    while True:
        proposes = is_new & (asked < in_reach)
        target = preferred.gather(2, asked.clamp_max(servers - 1).unsqueeze(-1)).squeeze(-1)
        proposed = proposes.unsqueeze(-1) & (target.unsqueeze(-1) == torch.arange(servers))
        offers = state.gain.masked_fill(~proposed, -1.0)
        rank = offers.argsort(dim=1, descending=True, stable=True).argsort(1)
        refused = (proposed & (rank >= free.unsqueeze(1))).any(2)
        if not refused.any():
            break
        asked = asked + refused.long()
    strongest = best_in_reach(state.gain, state)
    return keep_or(state, torch.where(proposes, target, strongest))


def hungarian(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    quota: Quota = "equal",
) -> Tensor:
    """Assign requests to places at least total cost (Kuhn, 1955), running ones too.

    A device's cost on a server is its predicted time, and that of what waits behind it, if all of
    the server's places were taken by devices like itself; a move's prefill is in it.

    Args:
        state: what is known.
        allocator: sets what the cost is predicted with.
        generator: not asked.
        quota: how many places a server has.
    """
    places = quotas(state, quota)
    cost_s = full_house_s(state, allocator, places)
    weight = (1 + state.waiting_requests).unsqueeze(-1)
    cost_s = (cost_s * weight).masked_fill(~state.reachable, OUT_OF_REACH_S)
    server = keep_or(state, best_in_reach(state.gain, state)).numpy().copy()
    has, reachable = state.has_request.numpy(), state.reachable.numpy()
    for network, (cost, seats) in enumerate(zip(cost_s.double().numpy(), places, strict=True)):
        device = np.flatnonzero(has[network])
        seat = np.repeat(np.arange(state.num_servers), seats.numpy())
        row, column = linear_sum_assignment(cost[device][:, seat])
        device, chosen = device[row], seat[column]
        is_legal = reachable[network, device, chosen]
        server[network, device[is_legal]] = chosen[is_legal]
    return torch.from_numpy(server)


def full_house_s(state: NetworkState, allocator: Allocator, places: Tensor) -> Tensor:
    """Predict a device's remaining time among devices like itself, (B, M, E) seconds.

    Args:
        state: what is known.
        allocator: sets what it is predicted with.
        places: (B, E) long, devices on each server.
    """
    num, devices, servers = state.gain.shape
    most = int(places.max().clamp_min(1))
    networks = torch.arange(num).repeat_interleave(devices)
    # Each device's own network, in which its copies fill every server.
    device = torch.arange(devices).repeat(num)[:, None].expand(-1, servers * most)
    view = take_devices(state.select(networks), device)
    place = torch.arange(servers * most)
    server = (place // most).expand_as(device)
    exists = place % most < places[networks].gather(1, server)
    seconds = server_cost(view, allocator).remaining_s(server, exists)
    return seconds.view(num, devices, servers, most)[..., 0]
