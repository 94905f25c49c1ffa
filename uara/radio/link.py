"""From gain, power and bandwidth to bits per second.

The one link model of formula, event judge and runtime. Any shapes that broadcast.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

THERMAL_NOISE_DBM_PER_HZ = -174.0  # k T at 290 K, rounded as in 3GPP TR 38.901 Table 7.8-1 runs


class LinkConfig(BaseModel):
    """Receiver noise and the abstraction of link adaptation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uplink_noise_figure_db: float = Field(
        5.0, ge=0, description="base station receiver (3GPP TR 38.901 Table 7.8-1: 5 dB)"
    )
    downlink_noise_figure_db: float = Field(
        9.0, ge=0, description="device receiver (3GPP TR 38.901 Table 7.8-1: 9 dB)"
    )
    snr_gap_db: float = Field(
        3.0, ge=0, description="loss of a practical code against the Shannon bound"
    )
    spectral_efficiency_max: float = Field(
        5.55, gt=0, description="bit/s/Hz; 64-QAM rate 948/1024, 3GPP TS 38.214 Table 5.1.3.1-1"
    )

    @property
    def uplink_noise_w_per_hz(self) -> float:
        """Noise power density at the base station."""
        return noise_density_w_per_hz(self.uplink_noise_figure_db)

    @property
    def downlink_noise_w_per_hz(self) -> float:
        """Noise power density at the device."""
        return noise_density_w_per_hz(self.downlink_noise_figure_db)


def noise_density_w_per_hz(noise_figure_db: float) -> float:
    """Convert a noise figure to a noise power density in W/Hz."""
    return 10 ** ((THERMAL_NOISE_DBM_PER_HZ + noise_figure_db - 30) / 10)


def dbm_to_w(power_dbm: float) -> float:
    """Convert dBm to watt."""
    return float(10 ** ((power_dbm - 30) / 10))


def spectral_efficiency(snr: Tensor, config: LinkConfig) -> Tensor:
    """Compute bit/s/Hz from a linear SNR: min(cap, log2(1 + SNR / gap))."""
    gap = 10 ** (config.snr_gap_db / 10)
    return (snr / gap).log1p_().div_(math.log(2)).clamp_(max=config.spectral_efficiency_max)


def rate_bps(
    gain: Tensor,
    power_w: Tensor,
    bandwidth_hz: Tensor,
    noise_w_per_hz: float,
    config: LinkConfig,
) -> Tensor:
    """Compute the rate of a link that spreads its power over its own bandwidth.

    R = b min(cap, log2(1 + P g / (N0 b gap))), with N0 including the noise figure; increasing and
    concave in b and P, and 0 at b = 0.

    Args:
        gain: linear power gain.
        power_w: transmit power.
        bandwidth_hz: bandwidth, >= 0.
        noise_w_per_hz: noise power density at the receiver.
        config: gap and cap of link adaptation.

    Returns:
        bits per second, broadcast shape of the arguments.
    """
    safe_hz = bandwidth_hz.clamp_min(1e-3)
    snr = gain * power_w / (noise_w_per_hz * safe_hz)
    return bandwidth_hz * spectral_efficiency(snr, config)
