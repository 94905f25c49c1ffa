"""Band and compute of a server split together so that its slowest request is as fast as possible.

Shape legend: B networks, M devices, E servers. Tensors are float64 but for the state's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.band_split import SharedBand, step_inside
from uara.control.request_work import RequestWork
from uara.control.uplink_conditions import (
    MIN_EFFICIENCY,
    equal_share_hz,
    expected_uplink_noise,
    uplink_efficiency,
)
from uara.network import Decision, NetworkState
from uara.prediction import Physics

STEPS = 9
_TINY = 1e-300


@dataclass(frozen=True)
class JointShares:
    """Both parts, (B, M) each."""

    bandwidth_hz: Tensor
    compute_share: Tensor


def split_band_and_compute(
    upload: Tensor, compute: Tensor, other_s: Tensor, shared: SharedBand
) -> JointShares:
    """Minimise T with other_s + upload / b + compute / z <= T, sum of b <= band, sum of z <= 1.

    With c = upload / band, q = compute, s = T - other_s and v = (sqrt c, sqrt q), the conditions of
    optimality give b / band = (c + sqrt(c q) t) / s and z = (q + sqrt(c q) / t) / s with one t per
    server. Both budgets hold with equality where (1, t) is an eigenvector to eigenvalue 1 of the
    2 x 2 matrix M(T), the sum of v v' / s; its largest eigenvalue falls with T, so T is the root of
    one equation. A device alone ends at other_s + c + q, with equal shares all end by some T above.

    Args:
        upload: (B, M) seconds x hertz, bits over bit/s/Hz.
        compute: (B, M) seconds alone on the server.
        other_s: (B, M) of the request, on neither.
        shared: band, server, and who takes part.
    """
    on = shared.sends
    c = torch.where(on, upload / shared.band_hz, 0.0)
    q = torch.where(on, compute, 0.0)
    root_c, root_q = c.sqrt(), q.sqrt()
    users = shared.band_hz / shared.share_hz
    early = shared.largest(other_s + c + q)
    late = shared.largest(other_s + users * (c + q))
    finish = early
    for step in range(STEPS):
        slack = torch.where(on, finish - other_s, 1.0).clamp_min(_TINY)
        of_c, of_q = shared.total(c / slack), shared.total(q / slack)
        cross = shared.total(root_c * root_q / slack)
        spread = torch.hypot(of_c - of_q, 2 * cross)
        value = 0.5 * (of_c + of_q + spread)
        # Of both forms of the eigenvector the one without cancellation.
        is_c = of_c >= of_q
        first = torch.where(is_c, 0.5 * (spread + of_c - of_q), cross)
        second = torch.where(is_c, cross, 0.5 * (spread + of_q - of_c))
        length = torch.hypot(first, second).clamp_min(_TINY)
        first, second = first / length, second / length
        along = root_c * first + root_q * second
        if step == STEPS - 1:
            break
        steepness = shared.total((along / slack).square()).clamp_min(_TINY)
        is_early = value > 1
        early = torch.where(is_early, finish, early)
        late = torch.where(is_early, late, finish)
        newton = finish + value * (value - 1) / steepness
        finish = step_inside(newton, early, late, finish)
    # Where nobody needs both, one part of the eigenvector is 0, and so is what it would divide.
    band = (c + root_c * root_q * (second / first.clamp_min(1e-150))) / slack
    share = (q + root_c * root_q * (first / second.clamp_min(1e-150))) / slack
    total = shared.total(share)
    return JointShares(shared.fill(band), share / total.clamp_min(_TINY))


def joint_shares(
    state: NetworkState, decision: Decision, physics: Physics, work: RequestWork
) -> JointShares:
    """Split bands and servers for the rest of all requests, bit/s/Hz as at equal shares.

    Args:
        state: B networks.
        decision: its servers.
        physics: link.
        work: what is left of the requests, as predicted at equal shares.
    """
    server, link = decision.server, physics.config.link
    noise = expected_uplink_noise(state, work.prediction, server, state.power_max_w, link)
    efficiency = uplink_efficiency(state, server, equal_share_hz(state, server), link, noise)
    upload = work.bits.double() / efficiency.double().clamp_min(MIN_EFFICIENCY)
    compute, other_s = work.compute_s.double(), work.elsewhere_s.double()
    band_hz = state.uplink_bandwidth_hz.gather(1, server).double()
    takes_part = (upload > 0) | (compute > 0)
    shared = SharedBand(band_hz, takes_part, server, state.num_servers)
    return split_band_and_compute(upload, compute, other_s, shared)
