"""Transmit powers of uplinks that disturb each other, by weighted minimum mean square error.

Shape legend: B networks, M devices, E servers. Tensors are float64 but for the state's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from uara.control.noise_density import LN2
from uara.control.request_work import request_work
from uara.control.uplink_conditions import uplink_activity
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.rates import MIN_RATE_BPS
from uara.serving.batching import sum_by_server

STRIDE = 4.0  # by which a step changes a power at most


@dataclass(frozen=True)
class DisturbedUplinks:
    """Uplinks to servers that all use the whole band; a device sends over a part of it.

    The signal over gap x (noise + interference) of device i with power p_i on b_i hertz is
    g_i p_i / (G b_i (N + sum of g_ki p_k a_k / W over the devices k of other servers)), with
    activities a and the whole band W: devices of one server never meet.
    """

    gain: Tensor  # (B, M, E) linear
    server: Tensor  # (B, M) long
    bandwidth_hz: Tensor  # (B, M) > 0 of those that send
    spread: Tensor  # (B, M) activity over the whole band, 1/Hz
    floor_w_per_hz: float  # N G
    gap: float  # G
    cap: float  # bit/s/Hz
    power_max_w: Tensor  # (B, M)

    @cached_property
    def own_gain(self) -> Tensor:
        """Each device's gain to its server, (B, M)."""
        return self.gain.gather(2, self.server.unsqueeze(-1)).squeeze(-1)

    def disturbance_w(self, power_w: Tensor) -> Tensor:
        """Compute gap x (noise + interference) on each device's band, (B, M)."""
        density = (power_w * self.spread).unsqueeze(-1)
        heard = (self._elsewhere * density).sum(1).gather(1, self.server)
        return self.bandwidth_hz * (self.floor_w_per_hz + self.gap * heard)

    def harm(self, price: Tensor) -> Tensor:
        """Add up what a watt of each device costs the others, (B, M).

        Args:
            price: (B, M) of a watt of disturbance at each device's receiver.
        """
        by_server = sum_by_server(
            price * self.gap * self.bandwidth_hz, self.server, self.gain.shape[2]
        )
        return self.spread * (self._elsewhere * by_server.unsqueeze(1)).sum(-1)

    def rate_bps(self, power_w: Tensor, *, capped: bool = True) -> Tensor:
        """Compute the rates, (B, M)."""
        snr = self.own_gain * power_w / self.disturbance_w(power_w)
        efficiency = torch.log1p(snr) / LN2
        return self.bandwidth_hz * (efficiency.clamp(max=self.cap) if capped else efficiency)

    @cached_property
    def _elsewhere(self) -> Tensor:
        own = self.server.unsqueeze(-1) == torch.arange(self.gain.shape[2])
        return self.gain.masked_fill(own, 0.0)


def wmmse_steps(
    links: DisturbedUplinks, weight: Tensor, power_w: Tensor, iterations: int
) -> Tensor:
    """Raise the weighted sum of (uncapped) rates step by step, (B, M) watt.

    Shi et al., IEEE Trans. Signal Processing 59(9), 2011, Table I, for single antennas: with
    v = sqrt p, receivers u, mean square errors 1 - u sqrt(g) v and their inverses w, each of u, w
    and v in turn is the best for the others. No step lowers the sum.

    Args:
        links: who disturbs whom.
        weight: (B, M) >= 0, of a bit per second.
        power_w: (B, M) to start from; 0 stays 0.
        iterations: of the three in turn.
    """
    root = links.own_gain.sqrt()
    limit = links.power_max_w.sqrt()
    amplitude = power_w.sqrt()
    weight = weight * links.bandwidth_hz  # rates are bandwidth x log
    for _ in range(iterations):
        signal = root * amplitude
        receiver = signal / (signal.square() + links.disturbance_w(amplitude.square()))
        precision = 1 / (1 - receiver * signal)
        price = weight * precision * receiver.square()
        cost = price * root.square() + links.harm(price)
        wanted = weight * precision * receiver * root / cost.clamp_min(1e-300)
        amplitude = torch.where(weight > 0, torch.minimum(wanted, limit), amplitude)
    return amplitude.square()


def wmmse_power(
    state: NetworkState, decision: Decision, physics: Physics, *, iterations: int
) -> Tensor:
    """Lower the sum of the remaining uplink times under interference, (B, M) watt.

    The sum of D / R has the slope -D / R^2 in a rate; so weighed, and weighed anew with every step,
    the rates stand for it. A step goes towards its end by a factor of four at most, since the
    weights hold nearby alone; any part of the way is better than none. Activities stay those of
    full power. Whoever reaches the best bit/s/Hz with less power sends with less. The powers of the
    least sum of times are kept, full power among them.

    Args:
        state: B networks.
        decision: servers, bandwidths and draft lengths.
        physics: link.
        iterations: steps.
    """
    work = request_work(state, decision, physics)
    links = disturbed_uplinks(state, decision, physics, uplink_activity(state, work.prediction))
    bits = work.bits.double()
    sends = (bits > 0) & (decision.bandwidth_hz > 0)

    def upload_s(power_w: Tensor) -> Tensor:
        rate = links.rate_bps(power_w).clamp_min(MIN_RATE_BPS)
        return torch.where(sends, bits / rate, 0.0).sum(1, keepdim=True)

    best = links.power_max_w
    least_s = upload_s(best)
    power = torch.minimum(best, _enough_w(links, best))
    for _ in range(iterations):
        rate = links.rate_bps(power).clamp_min(MIN_RATE_BPS)
        weight = torch.where(sends, bits / rate.square(), 0.0)
        weight = weight / weight.amax(1, keepdim=True).clamp_min(1e-300)
        end = wmmse_steps(links, weight, power, 1)
        power = torch.maximum(torch.minimum(end, STRIDE * power), power / STRIDE)
        power = torch.minimum(power, _enough_w(links, power))
        now_s = upload_s(power)
        best = torch.where(now_s < least_s, power, best)
        least_s = torch.minimum(least_s, now_s)
    watts = torch.where(sends, best, links.power_max_w).to(state.gain.dtype)
    return torch.minimum(watts, state.power_max_w)


def disturbed_uplinks(
    state: NetworkState, decision: Decision, physics: Physics, activity: Tensor
) -> DisturbedUplinks:
    """Describe the uplinks of a decision.

    With `mcs` a gap of the tables' distance to Shannon's bound stands for them.

    Args:
        state: gains, bands, power limits.
        decision: servers and bandwidths.
        physics: link.
        activity: (B, M) share of time on air.
    """
    link = physics.config.link
    gap = 10 ** (link.snr_gap_db / 10)
    band_hz = state.uplink_bandwidth_hz.gather(1, decision.server)
    return DisturbedUplinks(
        gain=state.gain.double(),
        server=decision.server,
        bandwidth_hz=decision.bandwidth_hz.double().clamp_min(1e-3),
        spread=(activity / band_hz).double(),
        floor_w_per_hz=link.uplink_noise_w_per_hz * gap,
        gap=gap,
        cap=link.spectral_efficiency_max,
        power_max_w=state.power_max_w.double(),
    )


def _enough_w(links: DisturbedUplinks, power_w: Tensor) -> Tensor:
    """Compute the power beyond which no MCS is faster, others as they are, (B, M)."""
    snr = torch.expm1(torch.tensor(links.cap * LN2, dtype=torch.float64))
    return snr * links.disturbance_w(power_w) / links.own_gain
