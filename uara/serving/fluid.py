"""A server as a fluid that its devices divide, the service of arXiv 2511.01695 (eqs 6 and 7).

Shape legend: B networks, M devices, E servers.

Device i has the share z_i of its server's time, so work that takes f_i / F alone takes
f_i / (z_i F): no batches and no waiting for one, the shares on a server add up to at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.batching import sum_by_server

MIN_SHARE = 1e-6  # keeps times finite for a device that was given nothing


@dataclass(frozen=True)
class FluidService:
    """Times of devices on fluid servers, (B, M) each."""

    share: Tensor  # what the device really has
    verify_s: Tensor  # its own forward pass at its share
    prefill_tokens_per_s: Tensor


def equal_shares(uses: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Divide each server equally among the devices that use it, (B, M); 0 for the others.

    Args:
        uses: (B, M) 1 or 0.
        server: (B, M) long.
        num_servers: E.
    """
    users = sum_by_server(uses, server, num_servers).gather(1, server)
    return uses / users.clamp_min(1)


def square_root_shares(work_s: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Divide each server in proportion to the square root of the work, (B, M).

    It minimises the sum of f / (z F) over the devices of a server: by the conditions of optimality
    f_i / z_i^2 is the same for all.

    Args:
        work_s: (B, M) time alone on the server; 0 for devices that do not use it.
        server: (B, M) long.
        num_servers: E.
    """
    root = work_s.clamp_min(0).sqrt()
    total = sum_by_server(root, server, num_servers).gather(1, server)
    return torch.where(work_s > 0, root / total.clamp_min(1e-30), 0.0)


def within_budget(share: Tensor, uses: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Scale decided shares down where those in use add up to more than 1 on a server, (B, M).

    Args:
        share: (B, M) decided, any non-negative numbers.
        uses: (B, M) 1 or 0; a device that does not use the server takes nothing.
        server: (B, M) long.
        num_servers: E.
    """
    taken = share.clamp_min(0) * uses
    total = sum_by_server(taken, server, num_servers).gather(1, server)
    return taken / total.clamp_min(1)


def fluid_service(
    share: Tensor, alone_s: Tensor, prefill_token_s: Tensor, server: Tensor
) -> FluidService:
    """Compute verify time and prefill rate at a share of the server.

    Args:
        share: (B, M), of a server's time.
        alone_s: (B, M) forward pass of the device's own rows and tokens on the whole server.
        prefill_token_s: (B, E) of one prefilled token on the whole server.
        server: (B, M) long.
    """
    used = share.clamp_min(MIN_SHARE)
    return FluidService(
        share=share,
        verify_s=alone_s / used,
        prefill_tokens_per_s=used / prefill_token_s.gather(1, server),
    )
