"""Prefill in chunks that ride on decoding passes: who queues, and what that costs whom.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uara.network import NetworkState
from uara.serving.batching import sum_by_server

Horizon = Literal["slot", "request"]


@dataclass(frozen=True)
class PrefillQueue:
    """Prefill waiting at the servers."""

    backlog: Tensor  # (B, M) own tokens in the queue
    tokens: Tensor  # (B, E)
    requests: Tensor  # (B, E)


def queue_prefill(
    state: NetworkState, server: Tensor, is_remote: Tensor, need: Tensor, horizon: Horizon
) -> tuple[PrefillQueue, Tensor]:
    """Find who loads the servers.

    Args:
        state: requests and uploads.
        server: (B, M) long.
        is_remote: (B, M) bool, has a request that a server serves.
        need: (B, M) context tokens whose cache the server lacks.
        horizon: "slot": those whose prompt is there; "request": everybody.

    Returns:
        the prefill queue, and who takes part in decoding batches (B, M), 1 or 0.
    """
    dtype = state.gain.dtype
    on_server = is_remote.to(dtype)
    if horizon == "slot":
        is_sent = state.upload_bits <= 0
        decodes = on_server * (is_sent & (need <= 0))
        backlog = on_server * is_sent * need
    else:
        decodes = on_server
        backlog = on_server * need
    sums = sum_by_server(
        torch.stack((backlog, (backlog > 0).to(dtype))),
        server.expand(2, *server.shape),
        state.num_servers,
    )
    foreign = state.foreign_prefill_tokens
    return PrefillQueue(backlog, sums[0] + foreign, sums[1] + (foreign > 0)), decodes


def pass_times_s(
    state: NetworkState,
    server: Tensor,
    own_s: Tensor,
    queue: PrefillQueue,
    chunk: int,
    horizon: Horizon,
) -> tuple[Tensor, Tensor]:
    """Compute a pass's time without decoding requests (B, E), and what each adds to it (B, M).

    Args:
        state: servers.
        server: (B, M) long.
        own_s: (B, M) time of a request's rows and tokens.
        queue: prefill waiting.
        chunk: prompt tokens that a pass takes along.
        horizon: with "request" the prefill of others is priced by `prefill_times`.
    """
    if horizon == "request":
        return state.forward_fixed_s, own_s
    chunk_s = chunk * state.forward_per_token_s
    # A request decodes when its own prefill is over: the passes it meets carry those of others.
    alone = (queue.backlog > 0) & (queue.requests.gather(1, server) <= 1)
    own_s = own_s - alone * chunk_s.gather(1, server)
    return state.forward_fixed_s + (queue.requests > 0) * chunk_s, own_s


def prefill_times(
    state: NetworkState,
    server: Tensor,
    need: Tensor,
    queue: PrefillQueue,
    busy: Tensor,
    chunk: int,
    horizon: Horizon,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute prefill rate, prefill time and decoding time lost to others' prefill, (B, M) each.

    A chunk rides on a decoding pass when there is one, and else runs by itself.

    Args:
        state: servers.
        server: (B, M) long.
        need: (B, M) context tokens whose cache the server lacks.
        queue: prefill waiting.
        busy: (B, E) share of time in decoding passes.
        chunk: prompt tokens that a pass takes along.
        horizon: "slot": requests take turns now; "request": first come, first served.
    """
    chunk_s = chunk * state.forward_per_token_s + busy * state.forward_fixed_s
    rate = (chunk / chunk_s).gather(1, server)
    if horizon == "slot":
        others = queue.requests.gather(1, server) - (queue.backlog > 0).to(rate.dtype)
        rate = rate / (others + 1)
        return rate, need / rate, torch.zeros_like(rate)
    # In an unknown order: on average half of the others go first.
    ahead = queue.tokens.gather(1, server) - queue.backlog
    prefill_s = torch.where(need > 0, (need + 0.5 * ahead) / rate, 0.0)
    lost_s = torch.where(need > 0, 0.5, 1.0) * ahead * state.forward_per_token_s.gather(1, server)
    return rate, prefill_s, lost_s
