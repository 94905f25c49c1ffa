"""Rules that choose a server for each device.

Shape legend: B networks, M devices, E servers.

The simple rules choose when a request starts and keep the server while it lives, since a change
costs a prefill; `greedy_latency` weighs that cost and may change. Ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.network import NetworkState, Phase
from uara.prediction import predict
from uara.serving.batching import sum_by_server

AssociationRule = Callable[[NetworkState, Allocator, torch.Generator], Tensor]


def keep_or(state: NetworkState, fresh: Tensor) -> Tensor:
    """Keep the server of a running request while it is in reach, else take the fresh choice."""
    current = state.server.clamp_min(0)
    in_reach = state.reachable.gather(2, current.unsqueeze(-1)).squeeze(-1)
    return torch.where((state.server >= 0) & in_reach, current, fresh)


def best_in_reach(score: Tensor, state: NetworkState) -> Tensor:
    """Take the reachable server of highest score (B, M, E); the first of equals."""
    return torch.where(state.reachable, score, -torch.inf).argmax(-1)


def random(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose uniformly among the servers in reach."""
    return keep_or(state, best_in_reach(torch.rand(state.gain.shape, generator=generator), state))


def max_sinr(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the strongest server: where each has a band of its own, SINR orders as gain does."""
    return keep_or(state, best_in_reach(state.gain, state))


def max_compute(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server whose forward pass is fastest, as everybody does."""
    return keep_or(
        state, best_in_reach(-state.forward_fixed_s[:, None, :].expand_as(state.gain), state)
    )


def least_loaded(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server with the fewest requests; new requests choose one after the other."""
    server = keep_or(state, torch.full_like(state.server, -1))
    # A request whose server went out of reach chooses again, as a new one does.
    placed = state.has_request & (server >= 0)
    server = server.clamp_min(0)
    load = (
        sum_by_server(placed.to(state.gain.dtype), server, state.num_servers) + state.foreign_rows
    )
    is_new = state.has_request & ~placed
    rows = torch.arange(state.num_networks)
    for device in is_new.any(0).nonzero().squeeze(1).tolist():
        score = (-load).masked_fill(~state.reachable[:, device], -torch.inf)
        choice = score.argmax(-1)
        server[:, device] = torch.where(is_new[:, device], choice, server[:, device])
        load[rows, choice] += is_new[:, device].to(load.dtype)
    return server


def greedy_latency(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Place one request after the other where the predicted total E2E of all placed ones is least.

    New requests come first, in the order of their best gain; then every running request is offered
    a move, whose prefill (its own, and the time it costs others) the prediction counts. Requests
    that wait behind one at its device wait as long as it does, and so weigh in.
    """
    num, servers = state.num_networks, state.num_servers
    server = keep_or(state, best_in_reach(state.gain, state))
    is_new = state.has_request & (state.server < 0)
    best_gain = state.gain.amax(-1)
    # Sort keys: new requests by gain, then running ones by gain, then devices without a request.
    rank = best_gain.log10() + 1e3 * is_new + torch.where(state.has_request, 0.0, -1e6)
    order = rank.argsort(dim=1, descending=True, stable=True)
    placed = state.has_request & ~is_new
    copies = torch.arange(num).repeat_interleave(servers)
    wide = state.select(copies)
    weight = 1 + wide.waiting_requests
    candidate = torch.arange(servers).repeat(num)
    for turn in range(int(state.has_request.sum(1).max())):
        device = order[:, turn]
        placed = placed.scatter(1, device[:, None], True) & state.has_request
        trial = server[copies].scatter(1, device[copies, None], candidate[:, None])
        phase = torch.where(placed[copies], wide.phase, int(Phase.IDLE))
        view = wide.with_(phase=phase)
        prediction = predict(view, allocator.quick(view, trial), allocator.physics, "request")
        cost = torch.where(placed[copies], prediction.remaining_s * weight, 0.0).sum(1)
        cost = cost.view(num, servers)
        reach = state.reachable.gather(1, device[:, None, None].expand(-1, 1, servers)).squeeze(1)
        choice = cost.masked_fill(~reach, torch.inf).argmin(-1)
        server = server.scatter(1, device[:, None], choice[:, None])
    return server


ASSOCIATION_RULES: dict[str, AssociationRule] = {
    "random": random,
    "max_sinr": max_sinr,
    "max_compute": max_compute,
    "least_loaded": least_loaded,
    "greedy_latency": greedy_latency,
}
