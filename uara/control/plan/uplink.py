"""How tasks share the uplink: closed forms for constant noise power and for constant noise density.

Shape legend: ... any leading axes (drops), K tasks.

With noise of constant power (arXiv 2510.11331 quotes dBm, not dBm/Hz) the spectral efficiency
R_k = log2(1 + p g / sigma^2) does not depend on the bandwidth, and w_k = D_k / R_k is what a task
asks of the band, in hertz seconds. With noise of constant density the rate is
b log2(1 + s_k / b) with s_k = p g / N0 in hertz.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

Array = NDArray[np.float64]

_BISECTIONS = 100  # halves of an interval of finish times, down to the last digit
_LN2 = float(np.log(2.0))


def uniform(bits: Array, band_hz: float) -> Array:
    """Give every task the same bandwidth, (..., K) hertz."""
    return np.full_like(bits, band_hz / bits.shape[-1])


def equal_finish(bits: Array, efficiency: Array, band_hz: float) -> Array:
    """Let all uploads end together, which makes the last one end soonest.

    If they ended apart, bandwidth moved from an early task to the last one would lower the maximum;
    so b_k = B w_k / sum w and all end at sum w / B.

    Args:
        bits: (..., K) payloads.
        efficiency: (..., K) bit/s/Hz at constant noise power.
        band_hz: B.

    Returns:
        (..., K) hertz.
    """
    asked = bits / efficiency
    return np.asarray(band_hz * asked / asked.sum(-1, keepdims=True))


def least_sum(bits: Array, efficiency: Array, band_hz: float) -> Array:
    """Minimise the sum of upload times at constant noise power: b_k ~ sqrt(w_k) (KKT), (..., K)."""
    root = np.sqrt(bits / efficiency)
    return np.asarray(band_hz * root / root.sum(-1, keepdims=True))


def bandwidth_for_finish(bits: Array, snr_hz: Array, finish_s: Array) -> Array:
    """Find the bandwidth at which uploads take a given time under constant noise density.

    D = T b log2(1 + s / b) is solved by b = -(D ln2 / T) / (W_-1(-c e^-c) + c) with
    c = D ln2 / (T s); at c >= 1 no bandwidth is enough, since the rate stays below s / ln2.

    Args:
        bits: (..., K).
        snr_hz: (..., K) p g / N0.
        finish_s: (..., K) or broadcastable.

    Returns:
        (..., K) hertz, infinite where no bandwidth is enough.
    """
    c = bits * _LN2 / (finish_s * snr_hz)
    reachable = c < 1
    safe = np.where(reachable, c, 0.5)
    branch = lambertw(-safe * np.exp(-safe), -1).real
    # Beside c = 1 both terms agree to the last digit: no finite bandwidth can be told from there.
    below = np.minimum(branch + safe, -np.finfo(np.float64).tiny)
    return np.where(reachable, -(bits * _LN2 / finish_s) / below, np.inf)


def equal_finish_at_density(bits: Array, snr_hz: Array, band_hz: float) -> Array:
    """Let all uploads end together under constant noise density.

    Bandwidth for a finish time falls with that time; the time at which the band is just used up is
    bisected between the bound of infinite bandwidth and the slowest upload of the uniform split.

    Args:
        bits: (..., K).
        snr_hz: (..., K) p g / N0.
        band_hz: B.

    Returns:
        (..., K) hertz that add up to B.
    """
    low = (bits * _LN2 / snr_hz).max(-1, keepdims=True)
    high = upload_s(bits, uniform(bits, band_hz), snr_hz=snr_hz).max(-1, keepdims=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = bandwidth_for_finish(bits, snr_hz, middle).sum(-1, keepdims=True) <= band_hz
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    split = bandwidth_for_finish(bits, snr_hz, high)
    return np.asarray(band_hz * split / split.sum(-1, keepdims=True))


def upload_s(
    bits: Array,
    bandwidth_hz: Array,
    *,
    efficiency: Array | None = None,
    snr_hz: Array | None = None,
) -> Array:
    """Compute upload times, (..., K), at constant noise power or at constant density.

    Args:
        bits: (..., K).
        bandwidth_hz: (..., K).
        efficiency: (..., K) bit/s/Hz; noise of constant power.
        snr_hz: (..., K) p g / N0; noise of constant density.
    """
    if efficiency is None:
        assert snr_hz is not None, "one of the two kinds of noise is needed"
        efficiency = np.log1p(snr_hz / bandwidth_hz) / _LN2
    return np.asarray(bits / (bandwidth_hz * efficiency))
