"""What a share of a band buys: uplink time, its cost beside drafting, and joules.

Shapes: all tensors of one `Uplink` have one shape, that of chosen links (B, M) or of all pairs
(B, M, E); B networks, M devices, E servers.

The cost of a share y is s(U(y)) + e(y, U(y)): U falls with y and is convex, s is convex in U. From
the best uplink time on (`enough_s`) more bandwidth does not pay; up to there the cost is convex in
y, which the exact allocator and the lower bound rest on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from uara.control.p1.readings import P1Config

SMALLEST_SHARE = 1e-9  # where searches for a share begin
LOG_2 = math.log(2)


@dataclass(frozen=True)
class Uplink:
    """Links with the constants of their costs."""

    readings: P1Config
    device_time_s: Tensor
    payload_bits: Tensor
    snr_hz: Tensor  # SNR times the bandwidth of the noise
    band_hz: Tensor
    power_w: Tensor
    battery: Tensor

    @classmethod
    def of(cls, readings: P1Config, **tensors: Tensor) -> Uplink:
        """Broadcast tensors to one shape."""
        shapes = (values.shape for values in tensors.values())
        shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return cls(readings, **{name: values.expand(shape) for name, values in tensors.items()})

    def time_s(self, share: Tensor) -> Tensor:
        """Compute U = d / (y W log2(1 + SNR)) (eq 5)."""
        return self.time_and_slope(share)[0]

    def time_and_slope(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Compute U and -y U'(y), its fall with the logarithm of the share."""
        if self.readings.noise != "share":
            uplink_s = self._nats_s / (share * self._whole_band_snr.log1p())
            return uplink_s, uplink_s
        snr = self._whole_band_snr / share
        nats = snr.log1p()
        uplink_s = self._nats_s / (share * nats)
        return uplink_s, uplink_s * (1 - snr / ((1 + snr) * nats))

    @cached_property
    def _nats_s(self) -> Tensor:
        """Time over the whole band at one nat per second and hertz."""
        return self.payload_bits * LOG_2 / self.band_hz

    @cached_property
    def _whole_band_snr(self) -> Tensor:
        return self.snr_hz if self.readings.noise == "printed" else self.snr_hz / self.band_hz

    @property
    def _sync_weight_per_s(self) -> float:
        """Lambda in 1/s: a penalty in milliseconds counts a square of milliseconds as one."""
        return self.readings.sync_weight * (1e3 if self.readings.sync == "penalty_ms" else 1.0)

    def sync_s(self, uplink_s: Tensor) -> Tensor:
        """Compute what an uplink time costs beside the drafting time."""
        match self.readings.sync:
            case "overlap":
                return (uplink_s - self.device_time_s).clamp_min(0)
            case "sequential":
                return uplink_s
            case "none":
                return torch.zeros_like(uplink_s)
        return self._sync_weight_per_s * (uplink_s - self.device_time_s).square()

    def _sync_slope(self, uplink_s: Tensor) -> Tensor:
        match self.readings.sync:
            case "overlap":
                return (uplink_s > self.device_time_s).to(uplink_s.dtype)
            case "sequential":
                return torch.ones_like(uplink_s)
            case "none":
                return torch.zeros_like(uplink_s)
        return 2 * self._sync_weight_per_s * (uplink_s - self.device_time_s)

    def energy_j(self, share: Tensor, uplink_s: Tensor) -> Tensor:
        """Compute E^CM."""
        factor = self.readings.radio_energy_factor
        match self.readings.radio_energy:
            case "printed":
                return factor * share * self.band_hz * self.power_w
            case "predecessor":
                return share * self.power_w * self.readings.slot_s
        return factor * self.power_w * uplink_s

    @cached_property
    def _energy_slopes(self) -> tuple[Tensor, Tensor]:
        """Seconds of cost per second of uplink time, and per unit of share."""
        per_joule = self.readings.energy_weight / self.battery
        factor = self.readings.radio_energy_factor
        nothing = torch.zeros_like(per_joule)
        match self.readings.radio_energy:
            case "printed":
                return nothing, per_joule * factor * self.band_hz * self.power_w
            case "predecessor":
                return nothing, per_joule * self.power_w * self.readings.slot_s
        return per_joule * factor * self.power_w, nothing

    def cost_s(self, share: Tensor) -> Tensor:
        """Compute what a share costs: uplink beside drafting, and weighted energy."""
        uplink_s = self.time_s(share)
        joules = self.energy_j(share, uplink_s)
        return self.sync_s(uplink_s) + self.readings.energy_weight / self.battery * joules

    @cached_property
    def enough_s(self) -> Tensor:
        """Uplink time below which more bandwidth brings nothing."""
        per_second, _ = self._energy_slopes
        if self.readings.sync in ("penalty_s", "penalty_ms"):
            weight = max(self._sync_weight_per_s, 1e-300)
            return (self.device_time_s - per_second / (2 * weight)).clamp_min(0)
        wanted = self.device_time_s if self.readings.sync == "overlap" else 0.0
        enough = torch.where(per_second > 0, 0.0, wanted)
        if self.readings.sync == "none":
            enough = torch.where(per_second > 0, 0.0, torch.inf)
        return enough

    def convex_cost_s(self, share: Tensor) -> Tensor:
        """Compute the cost without the rise beyond the best uplink time: convex, never above it."""
        uplink_s = torch.maximum(self.time_s(share), self.enough_s)
        per_second, per_share = self._energy_slopes
        safe_s = torch.where(uplink_s.isinf(), 0.0, uplink_s)
        return self.sync_s(safe_s) + per_second * safe_s + per_share * share

    def slope(self, share: Tensor) -> Tensor:
        """Differentiate the convex cost by the share; it never falls with the share."""
        uplink_s, per_log = self.time_and_slope(share)
        per_second, per_share = self._energy_slopes
        marginal = self._sync_slope(uplink_s) + per_second
        return per_share - (uplink_s > self.enough_s) * marginal * per_log / share

    def best_share(self, price: Tensor, halvings: int = 50) -> Tensor:
        """Find the share of least convex cost plus price times share, by bisection of its log.

        Args:
            price: of the whole band, broadcasts to the links' shape.
            halvings: 50 leave a relative error of 2e-14.
        """
        low = torch.full_like(self.device_time_s, math.log(SMALLEST_SHARE))
        high = torch.zeros_like(low)
        for _ in range(halvings):
            middle = (low + high) / 2
            wants_more = self.slope(middle.exp()) + price < 0
            low = torch.where(wants_more, middle, low)
            high = torch.where(wants_more, high, middle)
        return low.exp()
