"""KV memory of servers: who is admitted, what has to go, and what a change of server costs.

Shape legend: B networks, M devices, E servers, N = 2 M claims on memory (requests and caches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class MemoryConfig(BaseModel):
    """KV memory of servers and how a cache follows its request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    admission: bool = Field(
        False,
        description="a request is prefilled and decoded only while its server has reserved memory "
        "for its prompt and the longest answer of its task; others wait, first come, first served",
    )
    capacity_tokens: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        None, description="KV memory of each server; null: that of its rack"
    )
    handover: Literal["prefill", "transfer"] = Field(
        "prefill",
        description="prefill: the new server reads the context anew; transfer: the cache is moved "
        "over the backhaul",
    )
    backhaul_bps: float = Field(10e9, gt=0, description="rate of one transfer between two servers")


@dataclass(frozen=True)
class Claims:
    """What asks for memory at the start of a slot; requests first, then idle caches, (B, M) each.

    A request's claim is what it may grow to; a cache's is what it holds.
    """

    tokens: Tensor
    server: Tensor  # long
    wants: Tensor  # bool
    is_resident: Tensor  # bool, has been admitted before
    since: Tensor  # slot in which the request came to the server
    cache_tokens: Tensor
    cache_server: Tensor  # long
    cache_since: Tensor  # slot in which the cache was last used


@dataclass(frozen=True)
class Admission:
    """Who has memory in a slot."""

    admitted: Tensor  # (B, M) bool, requests
    kept: Tensor  # (B, M) bool, idle caches that may stay


def admit(claims: Claims, capacity_tokens: Tensor) -> Admission:
    """Give memory to residents, then to waiting requests in the order of their coming, then caches.

    Nobody overtakes: while the first in the queue does not fit, those behind it wait too, and idle
    caches go before a request has to wait; of them the one last used stays longest.

    Args:
        claims: what asks.
        capacity_tokens: (B, E).
    """
    num, devices = claims.tokens.shape
    holds_cache = claims.cache_tokens > 0
    never = torch.full_like(claims.since, torch.inf, dtype=torch.float64)
    rank = torch.where(claims.is_resident, -1.0, claims.since)
    # Slots are counted from 0 and stay far below the offset that puts caches last.
    cache_rank = 1e9 - claims.cache_since.double()
    key = torch.cat(
        (torch.where(claims.wants, rank, never), torch.where(holds_cache, cache_rank, never)), 1
    )
    order = key.argsort(dim=1, stable=True)
    tokens = torch.cat((claims.tokens * claims.wants, claims.cache_tokens), 1).gather(1, order)
    server = torch.cat((claims.server, claims.cache_server.clamp_min(0)), 1).gather(1, order)
    taken = torch.zeros(num, 2 * devices, capacity_tokens.shape[1])
    taken.scatter_(2, server.unsqueeze(-1), tokens.unsqueeze(-1))
    total = taken.cumsum(1).gather(2, server.unsqueeze(-1)).squeeze(-1)
    fits = torch.zeros_like(key, dtype=torch.bool)
    fits.scatter_(1, order, total <= capacity_tokens.gather(1, server))
    return Admission(claims.wants & fits[:, :devices], holds_cache & fits[:, devices:])
