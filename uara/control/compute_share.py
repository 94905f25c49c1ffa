"""Rules for the shares of fluid servers (`physics.service: fluid`), and the order of serial ones.

Shape legend: B networks, M devices, E servers, J jobs.

Shares go to those who use their server in this slot: a request whose prompt is still on its way
takes none yet.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.control.joint_min_max import joint_shares
from uara.control.request_work import RequestWork, request_work
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.serving.batching import sum_by_server
from uara.serving.fluid import equal_shares, square_root_shares

ComputeRule = Callable[[NetworkState, Decision, Physics], Tensor]


def equal_compute(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Give every user of a server the same share, (B, M)."""
    uses = _uses(state, request_work(state, decision, physics))
    return equal_shares(uses, decision.server, state.num_servers)


def square_root_compute(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Minimise the sum of the remaining compute times: shares as the roots of the work, (B, M)."""
    work = request_work(state, decision, physics)
    asked_s = work.compute_s * _uses(state, work)
    return square_root_shares(asked_s, decision.server, state.num_servers)


def proportional_compute(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Let the remaining work of a server end together: shares in proportion to it, (B, M)."""
    work = request_work(state, decision, physics)
    return _in_proportion(work.compute_s * _uses(state, work), state, decision.server)


def joint_min_max(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Take the server's part of the least longest time over band and compute together, (B, M).

    It is reckoned for whole requests; users of this slot divide what the others do not use yet.
    """
    work = request_work(state, decision, physics)
    share = joint_shares(state, decision, physics, work).compute_share.to(state.gain.dtype)
    return _in_proportion(share * _uses(state, work), state, decision.server)


def _uses(state: NetworkState, work: RequestWork) -> Tensor:
    """Tell who uses its server in this slot, (B, M) 1 or 0."""
    is_sent = state.has_request & (state.upload_bits <= 0)
    return (is_sent & ~work.prediction.is_device_only).to(state.gain.dtype)


def _in_proportion(weight: Tensor, state: NetworkState, server: Tensor) -> Tensor:
    total = sum_by_server(weight, server, state.num_servers).gather(1, server)
    return weight / total.clamp_min(1e-30)


def johnson_order(upload_s: Tensor, compute_s: Tensor) -> Tensor:
    """Order jobs that pass through uplink and server one after the other, first to last.

    Johnson's rule (Naval Research Logistics Quarterly 1, 1954): first the jobs that upload faster
    than they compute, by rising upload time, then the others, by falling compute time. No order
    ends sooner. Ties go to the lowest index.

    Args:
        upload_s: (B, J).
        compute_s: (B, J).

    Returns:
        (B, J) long, indices of jobs.
    """
    starts = upload_s < compute_s
    by_upload = torch.where(starts, upload_s, torch.inf)
    by_compute = torch.where(starts, torch.inf, -compute_s)
    order = by_compute.argsort(dim=1, stable=True)
    # The second sort is stable, so jobs with equal keys, all of the second kind, stay as sorted.
    return order.gather(1, by_upload.gather(1, order).argsort(dim=1, stable=True))


def serial_finish_s(upload_s: Tensor, compute_s: Tensor, order: Tensor) -> Tensor:
    """Compute when each job is done where uplink and server each take one job at a time, (B, J).

    Args:
        upload_s: (B, J).
        compute_s: (B, J).
        order: (B, J) long, the order on both.
    """
    sent_s = upload_s.gather(1, order).cumsum(1)
    work_s = compute_s.gather(1, order)
    # The server is done with job k at the latest of "sent j, then all work from j to k".
    done_before = work_s.cumsum(1) - work_s
    done_s = (sent_s - done_before).cummax(1).values + work_s.cumsum(1)
    return torch.empty_like(done_s).scatter(1, order, done_s)


COMPUTE_RULES: dict[str, ComputeRule] = {
    "equal_compute": equal_compute,
    "square_root_compute": square_root_compute,
    "proportional_compute": proportional_compute,
    "joint_min_max": joint_min_max,
}
