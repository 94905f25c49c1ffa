"""From gain, power and bandwidth to bits per second.

The one link model of formula, event judge and runtime. Any shapes that broadcast.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from uara.radio.mcs import Direction, mcs_efficiency
from uara.young_fields import dump_without_defaults

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
    interference: Literal["orthogonal", "reuse1"] = Field(
        "orthogonal",
        description="orthogonal: each server has a band of its own; reuse1: all use the whole band "
        "and disturb each other",
    )
    adaptation: Literal["shannon", "mcs"] = Field(
        "shannon",
        description="shannon: log2(1 + SINR / gap) up to the cap; mcs: 5G NR's modulation and "
        "coding schemes by their block error curves, without gap and cap",
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("interference", "adaptation"))

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


def spectral_efficiency(
    snr: Tensor, config: LinkConfig, direction: Direction | None = None
) -> Tensor:
    """Compute bit/s/Hz from a linear SNR or SINR.

    Args:
        snr: linear, any shape.
        config: `shannon`: min(cap, log2(1 + SNR / gap)); `mcs`: the tables of the direction.
        direction: needed by `mcs` alone.

    Returns:
        bit/s/Hz, shape of `snr`.
    """
    if config.adaptation == "mcs":
        assert direction is not None, "adaptation 'mcs' has tables per direction: name one"
        return mcs_efficiency(snr, direction)
    gap = 10 ** (config.snr_gap_db / 10)
    return (snr / gap).log1p_().div_(math.log(2)).clamp_(max=config.spectral_efficiency_max)


def rate_bps(
    gain: Tensor,
    power_w: Tensor,
    bandwidth_hz: Tensor,
    noise_w_per_hz: float | Tensor,
    config: LinkConfig,
    direction: Direction | None = None,
) -> Tensor:
    """Compute the rate of a link that spreads its power over its own bandwidth.

    R = b e(P g / (N b)), with N including noise figure and interference, and e bit/s/Hz of the
    SINR; 0 at b = 0. It never falls with P. With `shannon` it is increasing and concave in b and P;
    with `mcs` more bandwidth may cost, where it thins the power below what an MCS needs.

    Args:
        gain: linear power gain.
        power_w: transmit power.
        bandwidth_hz: bandwidth, >= 0.
        noise_w_per_hz: power density of noise and interference at the receiver.
        config: link adaptation.
        direction: needed by adaptation `mcs` alone.

    Returns:
        bits per second, broadcast shape of the arguments.
    """
    safe_hz = bandwidth_hz.clamp_min(1e-3)
    snr = gain * power_w / (noise_w_per_hz * safe_hz)
    return bandwidth_hz * spectral_efficiency(snr, config, direction)
