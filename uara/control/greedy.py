"""Association one device at a time by predicted latency: greedy insertion and best replies.

Shape legend: B networks, M devices, E servers.

Both may move running requests; the prediction counts the prefill of a move, and what it costs
others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.native_cost import knows
from uara.control.scores import best_in_reach, keep_or, strongest_first
from uara.control.server_cost import ServerCost, server_cost, until_settled
from uara.network import NetworkState


def new_ones_first(state: NetworkState) -> Tensor:
    """Order devices: new requests by best gain, then running ones by best gain, (B, M) long."""
    order = state.gain.amax(-1).argsort(dim=1, descending=True, stable=True)
    group = (state.server >= 0).long() + 2 * (~state.has_request).long()
    return order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))


def greedy_latency(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    sweeps: int = 2,
    swaps: bool | None = None,
) -> Tensor:
    """Place one request after the other where the predicted total E2E of all placed ones is least.

    New requests come first, in the order of their best gain; then every running request is offered
    a move. In the second sweep everybody is offered a move, and then to change places with another.
    Requests that wait behind one at its device wait as long as it does, and so weigh in.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        generator: not asked.
        sweeps: through all requests, the first one included.
        swaps: whether devices may change places; None: where compiled code knows the physics, since
            elsewhere pairs take long.
    """
    cost, order = server_cost(state, allocator), new_ones_first(state)
    server = keep_or(state, best_in_reach(state.gain, state))
    placed = state.has_request & (state.server >= 0)
    for _ in range(sweeps):
        server, _ = cost.relocate(server, placed, order, state.reachable)
        placed = state.has_request
    if swaps or (swaps is None and knows(state, allocator)):
        server, _ = cost.swap(server, order, state.reachable)
    return server


def best_response(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    rounds: int = 50,
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

    def replies(cost: ServerCost, part: NetworkState, server: Tensor) -> tuple[Tensor, Tensor]:
        order = strongest_first(part)
        return cost.relocate(server, part.has_request, order, part.reachable, harm_weight=0.0)

    start = keep_or(state, best_in_reach(state.gain, state))
    return until_settled(state, allocator, start, replies, rounds)
