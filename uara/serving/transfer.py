"""Moving KV caches between servers over the backhaul.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.network import NetworkState


def moving_kv_tokens(state: NetworkState, server: Tensor) -> Tensor:
    """Count the context tokens whose cache has to come to the chosen server, (B, M).

    What a request holds at another server is moved, and what is on its way goes on, also when the
    request moves again.

    Args:
        state: with `kv_arriving_tokens`.
        server: (B, M) long, chosen.
    """
    assert state.kv_arriving_tokens is not None, "this world moves no KV caches"
    moved = (server != state.server) & state.has_request
    moving = state.kv_arriving_tokens + torch.where(moved, state.kv_tokens, 0.0)
    return torch.where(state.has_request, moving, 0.0)


def kv_transfer_s(state: NetworkState, server: Tensor) -> Tensor:
    """Compute how long the chosen server waits for the cache, (B, M) seconds.

    Each transfer has the backhaul's rate for itself.

    Args:
        state: with `kv_arriving_tokens` and `kv_transfer_s`.
        server: (B, M) long, chosen.
    """
    assert state.kv_transfer_s is not None, "this world moves no KV caches"
    return moving_kv_tokens(state, server) * state.kv_transfer_s.gather(1, server)
