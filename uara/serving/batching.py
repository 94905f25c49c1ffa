"""Batched verification on shared servers: how long a request waits and how long its batch takes.

Shape legend: B networks, M devices, E servers.

A server runs one forward pass after the other; a pass takes along everything that waits when it
starts. Devices come back after a think time of their own, so batch size, waiting and pass time
depend on each other: a fixed point, solved by damped iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class BatchingConfig(BaseModel):
    """How a server forms its batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill_chunk_tokens: int = Field(
        512, gt=0, description="prompt tokens a forward pass takes along while a prefill is pending"
    )
    iterations: int = Field(6, gt=0, description="damped steps of the fixed point")


@dataclass(frozen=True)
class Comeback:
    """How requests come back to their server, (B, M) each."""

    think_s: Tensor  # from the end of a pass to the next input
    residual_share: Tensor  # of a pass that the input finds in progress and waits for
    new_tokens: Tensor  # given to a mean pass
    locked: Tensor  # chance of meeting each pass of others, for those who come back before its end


@dataclass(frozen=True)
class Batch:
    """Solution of the fixed point."""

    wait_s: Tensor  # (B, M) for the forward pass in progress
    verify_s: Tensor  # (B, M) the pass that carries the request
    presence: Tensor  # (B, M) share of time a participant spends in a forward pass
    busy: Tensor  # (B, E) share of time the server computes for decoding


def sum_by_server(values: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Sum device values over the devices of each server.

    Args:
        values: (..., M).
        server: (..., M) long.
        num_servers: E.

    Returns:
        (..., E).
    """
    out = values.new_zeros((*values.shape[:-1], num_servers))
    return out.scatter_add_(-1, server, values)


def residual_share(think_s: Tensor, forward_s: Tensor) -> Tensor:
    """Compute which share of a forward pass a returning device waits on a server that never rests.

    A device that left at the end of a pass and thinks for Z finds ceil(Z / S) passes of length S
    over it, and so waits ceil(Z / S) S - Z. Passes and think times jitter; averaged over a window
    of half a pass, the saw-tooth becomes the triangle wave between 1/4 and 3/4 returned here.
    """
    phase = torch.frac(think_s / forward_s + 0.75)
    return 0.25 + (phase - 0.5).abs()


def solve_batching(
    think_s: Tensor,
    own_s: Tensor,
    participates: Tensor,
    server: Tensor,
    base_s: Tensor,
    foreign_rows: Tensor,
    foreign_row_s: Tensor,
    config: BatchingConfig,
    rethink: Callable[[Tensor, Tensor], tuple[Comeback, Tensor]] | None = None,
) -> Batch:
    """Solve for waiting and forward times of devices that share batched servers.

    For device i with think time Z_i, cycle C_i = Z_i + W_i + S_i and presence x_i = S_i / C_i:
    W_i = P(another participant is in a pass) * residual share * S_i, with that probability
    1 - prod over the others of (1 - x_k), and S_i = base + own work + others' work weighted by x_k.
    A device that does not participate gets the times it would meet if it did.

    Args:
        think_s: (B, M) from the end of a pass to the next input; 0 for plain decoding.
        own_s: (B, M) time that the device's rows and tokens add to a pass.
        participates: (B, M) 1 or 0.
        server: (B, M) long.
        base_s: (B, E) time of a pass without any of the devices' tokens.
        foreign_rows: (B, E) rows of others, present in every pass.
        foreign_row_s: (B, E) time that one such row adds.
        config: iterations.
        rethink: computes the comeback and `own_s` from waits and pass times, (B, M) each, where
            they depend on them; `think_s` then only tells who waits at all.
    """
    num_servers = base_s.shape[-1]
    is_free = (foreign_rows <= 0).to(base_s.dtype)
    foreign_idle = is_free.gather(1, server)
    alone_s = (base_s + foreign_rows * foreign_row_s).gather(1, server) + own_s
    # Plain decoding sits in every pass: it never finds one in progress.
    waits = (think_s > 0).to(think_s.dtype)
    verify_s = alone_s
    wait_s = torch.zeros_like(verify_s)
    presence = participates * verify_s / (think_s + verify_s)
    pair_server = server.expand(2, *server.shape)
    for _ in range(config.iterations):
        back = None
        if rethink is not None:
            back, new_s = rethink(wait_s, verify_s)
            think_s, alone_s, own_s = back.think_s, alone_s + (new_s - own_s), new_s
            presence = participates * verify_s / (think_s + wait_s + verify_s)
        own = torch.stack((_log_idle(presence), presence * own_s))
        totals = sum_by_server(own, pair_server, num_servers)
        log_idle, work_s = totals.gather(-1, pair_server) - own  # of the others
        busy = 1 - foreign_idle * log_idle.exp()
        verify_s = alone_s + work_s
        if back is None:
            share = residual_share(think_s, verify_s)
        else:
            share = back.residual_share
            busy = _busy_when_locked(busy, back.locked * participates, server, num_servers)
        residual_s = busy * share * verify_s
        wait_s = 0.5 * (wait_s + waits * residual_s)
        presence = participates * verify_s / (think_s + wait_s + verify_s)
    idle = torch.exp(sum_by_server(_log_idle(presence), server, num_servers))
    return Batch(wait_s=wait_s, verify_s=verify_s, presence=presence, busy=1 - idle * is_free)


def _busy_when_locked(busy: Tensor, locked: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Raise the chance of a pass in progress among those who come back before a pass has ended.

    Two such devices are never in one pass for long, and then each waits for the other's, always:
    their phases are not independent.
    """
    own = _log_idle(locked)
    others = sum_by_server(own, server, num_servers).gather(-1, server) - own
    return torch.maximum(busy, locked * (1 - others.exp()))


def _log_idle(presence: Tensor) -> Tensor:
    """Compute the log of the probability that a device sits in no pass; finite at presence 1."""
    return torch.log1p(-presence.clamp(max=1 - 1e-6))
