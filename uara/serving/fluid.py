"""A server as a fluid that its devices divide, the service of arXiv 2511.01695 (eqs 6 and 7).

Shape legend: B networks, M devices, E servers.

Device i has the share z_i of its server's time, so work that takes f_i / F alone takes
f_i / (z_i F): no batches and no waiting for one, the shares on a server add up to at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.network import NetworkState
from uara.serving.batching import Batch, sum_by_server

MIN_SHARE = 1e-6  # keeps times finite for a device that was given nothing


@dataclass(frozen=True)
class FluidService:
    """Times of devices on fluid servers, (B, M) each."""

    share: Tensor  # what the device really has, or would have if it came
    verify_s: Tensor  # its own forward pass at its share
    prefill_tokens_per_s: Tensor
    num_servers: int

    def prefill_times(self, need: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute prefill rate, prefill time and time lost to others' prefill, (B, M) each.

        Args:
            need: (B, M) context tokens whose cache the server lacks.
        """
        rate = self.prefill_tokens_per_s
        return rate, need / rate, torch.zeros_like(rate)

    def batch(self, think_s: Tensor, server: Tensor, decodes: Tensor) -> Batch:
        """Put the passes into the form of batched service; nobody waits for a pass.

        Args:
            think_s: (B, M) from the end of a pass to the next input.
            server: (B, M) long.
            decodes: (B, M) 1 or 0.
        """
        presence = decodes * self.verify_s / (think_s + self.verify_s)
        busy = sum_by_server(presence * self.share, server, self.num_servers)
        return Batch(torch.zeros_like(think_s), self.verify_s, presence, busy)


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


def shares_met(
    decided: Tensor | None, work_s: Tensor, uses: Tensor, server: Tensor, num_servers: int
) -> Tensor:
    """Find the share of each device that uses its server, and what the others would have, (B, M).

    Args:
        decided: (B, M); None: in proportion to the square root of the work.
        work_s: (B, M) time alone on the server.
        uses: (B, M) 1 or 0.
        server: (B, M) long.
        num_servers: E.
    """
    if decided is None:
        claim, least = work_s.clamp_min(0).sqrt(), 1e-30
        share = square_root_shares(work_s * uses, server, num_servers)
    else:
        claim, least = decided.clamp_min(0), 1.0
        share = within_budget(decided, uses, server, num_servers)
    total = sum_by_server(claim * uses, server, num_servers).gather(1, server) + claim
    return torch.where(uses > 0, share, claim / total.clamp_min(least))


def fluid_service(
    state: NetworkState, server: Tensor, own_s: Tensor, uses: Tensor, decided: Tensor | None
) -> FluidService:
    """Compute verify times and prefill rates of devices that divide their servers.

    Args:
        state: servers; those of other networks' customers are not in the model.
        server: (B, M) long.
        own_s: (B, M) time that a request's rows and tokens add to a pass.
        uses: (B, M) 1 or 0, decodes or is prefilled.
        decided: (B, M) shares; None: in proportion to the square root of the pass alone.
    """
    alone_s = state.forward_fixed_s.gather(1, server) + own_s
    share = shares_met(decided, alone_s, uses, server, state.num_servers)
    used = share.clamp_min(MIN_SHARE)
    return FluidService(
        share=share,
        verify_s=alone_s / used,
        prefill_tokens_per_s=used / state.forward_per_token_s.gather(1, server),
        num_servers=state.num_servers,
    )
