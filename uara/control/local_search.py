"""Association by local search: devices change places, or move, for as long as the total falls.

Shape legend: B networks, M devices, E servers.

The total is the predicted remaining time of all requests; it counts the prefill of a move, so
running requests may move.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.scores import best_in_reach, keep_or, strongest_first
from uara.control.server_cost import ServerCost, until_settled
from uara.network import NetworkState


def tma(
    state: NetworkState, allocator: Allocator, generator: torch.Generator, *, rounds: int = 50
) -> Tensor:
    """Start at the strongest servers and swap pairs until no swap helps (after arXiv 2511.01695).

    Devices take turns in the order of their best gain, and each takes the first partner with whom
    the total falls. Numbers of devices per server stay those of the start.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        generator: not asked.
        rounds: at most, through all pairs.
    """

    def swaps(cost: ServerCost, part: NetworkState, server: Tensor) -> tuple[Tensor, Tensor]:
        return cost.swap(server, strongest_first(part), part.reachable)

    start = keep_or(state, best_in_reach(state.gain, state))
    return until_settled(state, allocator, start, swaps, rounds)


def tma_moves(
    state: NetworkState, allocator: Allocator, generator: torch.Generator, *, rounds: int = 50
) -> Tensor:
    """Swap pairs as `tma` and let single devices move, in turns, until neither helps.

    Args:
        state: what is known.
        allocator: sets what a placement is judged with.
        generator: not asked.
        rounds: at most, of both.
    """

    def swaps_and_moves(
        cost: ServerCost, part: NetworkState, server: Tensor
    ) -> tuple[Tensor, Tensor]:
        order = strongest_first(part)
        server, moved = cost.relocate(server, part.has_request, order, part.reachable)
        server, swapped = cost.swap(server, order, part.reachable)
        return server, moved | swapped

    start = keep_or(state, best_in_reach(state.gain, state))
    return until_settled(state, allocator, start, swaps_and_moves, rounds)
