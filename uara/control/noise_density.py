"""The rate of a band whose noise is a density, R = b min(c, log2(1 + s / b)), and its inversions.

Any shapes that broadcast. `snr_hz` is s = P g / (N G), received power over noise density and gap:
the bandwidth at which the SNR over the gap is 1. Spread over more bandwidth the same power meets
more noise, so R is concave in b: straight up to the knee where the cap c ends, and never above
s / ln 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LN2 = math.log(2)
BOUNDLESS_HZ = 1e30  # s of a link whose bit/s/Hz do not depend on its bandwidth
_SMALL = 1e-3  # below, differences of nearly equal numbers give way to their power series


def excess_root(excess: Tensor) -> Tensor:
    """Solve v - ln(1 + v) = u for v >= 0, which is v = -1 - W_{-1}(-exp(-1 - u)).

    W_{-1} is the lower branch of Lambert's function. Written so, neither small nor large u loses
    digits. Barry et al. (Math. Comput. Simul. 53, 2000, eq. 15) start it within 0.03 %; two steps
    of Halley, which cube the error, end at rounding.

    Args:
        excess: u >= 0, float64 for full accuracy.

    Returns:
        v, shape of `excess`.
    """
    u = excess.clamp_min(1e-300)
    root = u.sqrt()
    bend = 0.3361 * root * math.sqrt(0.5)
    v = u + (2 / 0.3361) * bend / (1 - 0.0042 * u * torch.exp(-0.0201 * root) + bend)
    for _ in range(2):
        residual = _minus_log1p(v) - u
        newton = residual * (1 + v) / v
        v = v - newton / (1 - 0.5 * newton / (v * (1 + v)))
    return v


def _minus_log1p(v: Tensor) -> Tensor:
    """Compute v - ln(1 + v), (v^2 / 2 - ...) where it is small."""
    series = v * v * (1 / 2 - v * (1 / 3 - v * (1 / 4 - v * (1 / 5 - v / 6))))
    return torch.where(v.abs() < _SMALL, series, v - torch.log1p(v))


def log_slope(x: Tensor) -> Tensor:
    """Compute ln(1 + x) - x / (1 + x) for x >= 0; (x^2 / 2 - ...) where it is small."""
    series = x * x * (1 / 2 - x * (2 / 3 - x * (3 / 4)))
    return torch.where(x < 0.1 * _SMALL, series, torch.log1p(x) - x / (1 + x))


@dataclass(frozen=True)
class RateCurve:
    """Rate over bandwidth of links at fixed power."""

    snr_hz: Tensor  # s
    cap: Tensor  # c, bit/s/Hz

    @classmethod
    def straight(cls, efficiency: Tensor) -> RateCurve:
        """Make links of the same bit/s/Hz at any bandwidth."""
        return cls(torch.full_like(efficiency, BOUNDLESS_HZ), efficiency)

    @property
    def knee_hz(self) -> Tensor:
        """Bandwidth up to which the cap holds."""
        return self.snr_hz / torch.expm1(self.cap * LN2)

    def rate_bps(self, bandwidth_hz: Tensor) -> Tensor:
        """Compute R(b)."""
        snr = self.snr_hz / bandwidth_hz
        return bandwidth_hz * torch.minimum(self.cap, torch.log1p(snr) / LN2)

    def slope(self, bandwidth_hz: Tensor) -> Tensor:
        """Compute R'(b); at the knee its value to the right, the lesser."""
        curved = log_slope(self.snr_hz / bandwidth_hz) / LN2
        return torch.where(bandwidth_hz < self.knee_hz, self.cap, curved)

    def bandwidth_hz(self, rate_bps: Tensor) -> Tensor:
        """Find the bandwidth that carries a rate, without bound as the rate nears s / ln 2.

        With k = R ln 2 / s and y = 1 + s / b, ln y = k (y - 1), so y = -W_{-1}(-k exp(-k)) / k.
        """
        k = (rate_bps * LN2 / self.snr_hz).clamp(1e-280, 1 - 1e-15)
        short = 1 - k
        excess = torch.where(short < 0.5, _minus_log1p(-short), -short - torch.log(k))
        curved = self.snr_hz * k / (excess_root(excess) + short)
        return torch.maximum(rate_bps / self.cap, curved)
