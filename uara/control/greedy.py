"""Association one device at a time by predicted latency: greedy insertion and best replies.

Shape legend: B networks, M devices, E servers.

Both may move running requests; the prediction counts the prefill of a move, and what it costs
others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.scores import best_in_reach, keep_or, strongest_first
from uara.control.server_cost import server_cost
from uara.network import NetworkState


def new_ones_first(state: NetworkState) -> Tensor:
    """Order devices: new requests by best gain, then running ones by best gain, (B, M) long."""
    order = strongest_first(state)
    is_old = (~state.has_request).long() * 2 + (state.server >= 0).long()
    return order.gather(1, is_old.gather(1, order).argsort(dim=1, stable=True))


def greedy_latency(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    sweeps: int = 2,
    harm_weight: float = 1.0,
    margin_s: float = 0.0,
) -> Tensor:
    """Place one request after the other where the predicted total E2E of all placed ones is least.

    New requests come first, in the order of their best gain; then every running request is offered
    a move, and in further sweeps everybody is. Requests that wait behind one at its device wait as
    long as it does, and so weigh in.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        generator: not asked.
        sweeps: through all requests.
        harm_weight: of what others lose, beside the device's own time.
        margin_s: that a move has to gain.
    """
    cost, order = server_cost(state, allocator), new_ones_first(state)
    server = keep_or(state, best_in_reach(state.gain, state))
    placed = state.has_request & (state.server >= 0)
    for _ in range(sweeps):
        server, moved = cost.relocate(
            server, placed, order, state.reachable, harm_weight=harm_weight, margin_s=margin_s
        )
        if bool(placed.equal(state.has_request)) and not moved.any():
            break
        placed = state.has_request
    return server


def best_response(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    rounds: int = 20,
) -> Tensor:
    """Let each device in turn move to the server of its own least predicted time until none does.

    Starts at the strongest servers. What a device does to others it does not ask; so the end is an
    equilibrium of selfish devices, and there need be none: `rounds` is the cap.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        generator: not asked.
        rounds: at most, through all requests.
    """
    cost, order = server_cost(state, allocator), strongest_first(state)
    server = keep_or(state, best_in_reach(state.gain, state))
    for _ in range(rounds):
        server, moved = cost.relocate(
            server, state.has_request, order, state.reachable, harm_weight=0.0
        )
        if not moved.any():
            break
    return server
