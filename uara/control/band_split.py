"""Exact splits of a server's band among concave rate curves: one finish for all, or one price.

Shape legend: B networks, M devices, E servers. All tensors are float64.

Both are one equation in one unknown per server, solved for all servers at once by Newton's method
that never leaves a shrinking bracket. What is the same for all devices of a server is kept per
device, (B, M), so that nothing is gathered within the iterations but sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.noise_density import LN2, RateCurve, log_slope
from uara.serving.batching import sum_by_server

FINISH_STEPS = 9
PRICE_STEPS = 10
PRICE_INNER_STEPS = 2  # of the bandwidth at a price, each from where the last price left off
_TINY = 1e-300


@dataclass(frozen=True)
class SharedBand:
    """Who shares which band."""

    band_hz: Tensor  # (B, M) of the device's server
    sends: Tensor  # (B, M) bool; the others get nothing
    server: Tensor  # (B, M) long
    num_servers: int

    def total(self, values: Tensor) -> Tensor:
        """Sum over the devices of each server, (B, M)."""
        return sum_by_server(values, self.server, self.num_servers).gather(1, self.server)

    def largest(self, values: Tensor) -> Tensor:
        """Take the largest value among a server's devices that send, (B, M)."""
        kept = values.masked_fill(~self.sends, -torch.inf)
        most = kept.new_full((len(kept), self.num_servers), -torch.inf)
        most = most.scatter_reduce(1, self.server, kept, "amax")
        return most.gather(1, self.server)

    @property
    def share_hz(self) -> Tensor:
        """Divide each band equally among those that send, (B, M)."""
        return self.band_hz / self.total(self.sends.to(self.band_hz.dtype)).clamp_min(1)

    def fill(self, bandwidth_hz: Tensor) -> Tensor:
        """Scale to exactly the whole band, (B, M)."""
        kept = torch.where(self.sends, bandwidth_hz, 0.0)
        return kept * (self.band_hz / self.total(kept).clamp_min(_TINY))


def split_for_one_finish(
    curve: RateCurve, bits: Tensor, other_s: Tensor, shared: SharedBand
) -> Tensor:
    """Let a server's uploads end together: the least T with other_s + bits / R(b) <= T.

    The bandwidths that a finish T takes add up to a convex falling function of T. At the time in
    which the slowest ends with the whole band to itself they are at least the band, at the time of
    the slowest with equal shares at most. Newton's method runs on the inverse of the sum, which is
    straight in T where efficiencies do not change.

    Args:
        curve: (B, M) rate curves.
        bits: (B, M) > 0 where a device sends.
        other_s: (B, M) >= 0, spent on other things than the uplink.
        shared: who shares what.

    Returns:
        (B, M) hertz.
    """
    early = shared.largest(other_s + bits / curve.rate_bps(shared.band_hz))
    late = shared.largest(other_s + bits / curve.rate_bps(shared.share_hz))
    finish = early
    bandwidth = shared.share_hz
    for _ in range(FINISH_STEPS):
        rate = bits / (finish - other_s).clamp_min(_TINY)
        bandwidth = torch.where(shared.sends, curve.bandwidth_hz(rate), 0.0)
        slope = rate * rate / (bits * curve.slope(bandwidth.clamp_min(_TINY)))
        taken = shared.total(bandwidth)
        steepness = shared.total(torch.where(shared.sends, slope, 0.0))
        is_early = taken > shared.band_hz
        early = torch.where(is_early, finish, early)
        late = torch.where(is_early, late, finish)
        newton = finish + taken * (taken / shared.band_hz - 1) / steepness
        finish = step_inside(newton, early, late, finish)
    return shared.fill(bandwidth)


def step_inside(newton: Tensor, low: Tensor, high: Tensor, last: Tensor) -> Tensor:
    """Take a step of Newton's method, or the middle where it leaves the bracket.

    What leaves it by rounding alone has arrived, and stays where it is.
    """
    margin = 1e-12 * last.abs()
    strays = ~((newton >= low - margin) & (newton <= high + margin))
    return torch.where(strays, 0.5 * (low + high), newton)


@dataclass(frozen=True)
class Worth:
    """The worth of a rate whose slope over bandwidth is K R' / (w R + d)^p, (B, M) each.

    The negative upload time -D / R has (K, w, d, p) = (D, 1, 0, 2); the rate of answers
    E / (a + D / R) has (E D, a, D, 2); ln R has (1, 1, 0, 1).
    """

    scale: Tensor  # K
    weight: Tensor  # w
    offset: Tensor  # d
    power: float  # p

    def log_slope(self, curve: RateCurve, bandwidth_hz: Tensor, slope: Tensor) -> Tensor:
        """Compute ln of the worth's slope, given that of the rate, (B, M)."""
        claim = self.weight * curve.rate_bps(bandwidth_hz) + self.offset
        return torch.log(self.scale) + torch.log(slope) - self.power * torch.log(claim)


def split_at_one_price(curve: RateCurve, worth: Worth, shared: SharedBand) -> Tensor:
    """Maximise the sum of the worths of a server's devices.

    At the maximum one hertz is worth the same to all that have some, and less to those without
    (the conditions of Karush, Kuhn and Tucker). The price is found by Newton's method in
    price^(-1 / p), in which straight rates are straight, between the lowest and the highest worth
    of a hertz at equal shares.

    Args:
        curve: (B, M) rate curves.
        worth: of each device; concave in the bandwidth.
        shared: who shares what.

    Returns:
        (B, M) hertz.
    """
    share = shared.share_hz.clamp_min(_TINY)
    right = worth.log_slope(curve, share, curve.slope(share))
    left_slope = torch.where(share <= curve.knee_hz, curve.cap, curve.slope(share))
    high = shared.largest(worth.log_slope(curve, share, left_slope))
    low = -shared.largest(-right)
    price = low
    seeker = _AtPrice.of(curve, worth)
    log_snr = torch.log(torch.minimum(curve.snr_hz / share, seeker.knee_snr))
    bandwidth = share
    for turn in range(PRICE_STEPS):
        steps = 2 * PRICE_INNER_STEPS if turn == 0 else PRICE_INNER_STEPS
        bandwidth, fall, log_snr = seeker(price, log_snr, steps)
        bandwidth = torch.where(shared.sends, bandwidth, 0.0)
        taken = shared.total(bandwidth)
        steepness = shared.total(torch.where(shared.sends, fall, 0.0)).clamp_min(_TINY)
        is_low = taken > shared.band_hz
        low = torch.where(is_low, price, low)
        high = torch.where(is_low, high, price)
        shrink = 1 - (taken - shared.band_hz) / (worth.power * steepness)
        newton = price - worth.power * torch.log(shrink.clamp_min(_TINY))
        price = step_inside(newton, low, high, price)
    return shared.fill(bandwidth)


@dataclass(frozen=True)
class _AtPrice:
    """Finds the bandwidth at which a hertz is worth a price, (B, M) all."""

    curve: RateCurve
    worth: Worth
    knee_hz: Tensor
    knee_snr: Tensor
    knee_log_slope: Tensor  # of the worth, to the right of the knee
    log_scale: Tensor
    log_cap_scale: Tensor

    @classmethod
    def of(cls, curve: RateCurve, worth: Worth) -> _AtPrice:
        """Prepare what does not depend on the price."""
        knee_hz, knee_snr = curve.knee_hz, torch.expm1(curve.cap * LN2)
        to_the_right = worth.log_slope(curve, knee_hz, log_slope(knee_snr) / LN2)
        log_scale = torch.log(worth.scale)
        log_cap_scale = log_scale + torch.log(curve.cap)
        return cls(curve, worth, knee_hz, knee_snr, to_the_right, log_scale, log_cap_scale)

    def __call__(self, price: Tensor, log_snr: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Find bandwidth, its fall over the log of the price, and ln(s / b) beyond the knee.

        Args:
            price: ln of it.
            log_snr: where to start.
            steps: of Newton's method.
        """
        curve, worth = self.curve, self.worth
        root = torch.exp((self.log_cap_scale - price) / worth.power)
        straight = (root - worth.offset) / (worth.weight * curve.cap)
        fall = root / (worth.power * worth.weight * curve.cap)
        fall = torch.where((straight > 0) & (straight < self.knee_hz), fall, 0.0)
        straight = straight.clamp_min(0).minimum(self.knee_hz)
        bandwidth, steepness = self.knee_hz, torch.ones_like(price)
        limit = torch.log(self.knee_snr)
        for step in range(steps + 1):
            snr = torch.exp(log_snr)
            bent = log_slope(snr)  # R' ln 2
            bandwidth = curve.snr_hz / snr
            claim = worth.weight * (bandwidth * torch.log1p(snr) / LN2) + worth.offset
            gain = worth.weight * bandwidth * bent / LN2 / claim
            steepness = (snr / (1 + snr)).square() / bent + worth.power * gain
            if step < steps:
                value = self.log_scale + torch.log(bent / LN2) - worth.power * torch.log(claim)
                log_snr = torch.minimum(log_snr + (price - value) / steepness, limit)
        is_bent = self.knee_log_slope > price
        bandwidth = torch.where(is_bent, bandwidth, straight)
        return bandwidth, torch.where(is_bent, bandwidth / steepness, fall), log_snr
