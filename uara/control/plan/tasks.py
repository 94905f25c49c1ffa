"""Draws the tasks of a drop: where the users are, how well they are heard, how long they ask.

Shape legend: D drops, K tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uara.control.plan.config import HetEdgeConfig

Array = NDArray[np.float64]

# TR 38.901 UMi: heights of site and user; Table 7.4.1-1 has 0.3 dB per metre above 1.5 m.
_SITE_HEIGHT_M, _USER_HEIGHT_M = 10.0, 1.5


@dataclass(frozen=True)
class Tasks:
    """Tasks of D independent drops."""

    gain: Array  # (D, K) linear
    input_tokens: Array  # (D, K)

    @property
    def num_drops(self) -> int:
        """D."""
        return len(self.gain)

    def drop(self, index: int) -> Tasks:
        """Take one drop, as a batch of one."""
        return Tasks(self.gain[index : index + 1], self.input_tokens[index : index + 1])

    def bits(self, config: HetEdgeConfig) -> Array:
        """Count payload bits of the prompts, (D, K)."""
        return self.input_tokens * config.bits_per_token

    def snr_hz(self, config: HetEdgeConfig) -> Array:
        """Compute received power over noise density, (D, K) hertz."""
        return config.power_w * self.gain * config.bandwidth_hz / config.noise_w

    def efficiency(self, config: HetEdgeConfig) -> Array:
        """Compute log2(1 + p g / sigma^2), (D, K) bit/s/Hz."""
        return np.asarray(np.log2(1 + config.power_w * self.gain / config.noise_w))


def path_loss_db(config: HetEdgeConfig, distance_m: Array) -> Array:
    """Compute the path loss of the reading that the config names.

    Args:
        config: names it, and the carrier.
        distance_m: along the ground.
    """
    if config.path_loss == "macro":
        return np.asarray(128.1 + 37.6 * np.log10(distance_m / 1e3))
    slant_m = np.hypot(distance_m, _SITE_HEIGHT_M - _USER_HEIGHT_M)
    carrier_ghz = config.carrier_hz / 1e9
    if config.path_loss == "umi_nlos":
        return np.asarray(35.3 * np.log10(slant_m) + 22.4 + 21.3 * np.log10(carrier_ghz))
    return np.asarray(32.45 + 20 * np.log10(carrier_ghz) + 20 * np.log10(slant_m))


def draw_tasks(config: HetEdgeConfig, num_drops: int) -> Tasks:
    """Draw drops; the first users of a drop are the same whatever their number.

    Every drop and purpose has a stream of its own, so configs that differ in a band, a pair or a
    number of users meet the same places, fading and (relative) lengths.
    """
    uniform = np.stack([_streams(config, drop) for drop in range(num_drops)])  # (D, 3, K)
    share, fade, length = uniform[:, 0], uniform[:, 1], uniform[:, 2]
    low, high = config.distance_min_m**2, config.cell_radius_m**2
    distance_m = np.sqrt(low + share * (high - low))
    gain = 10 ** (-path_loss_db(config, distance_m) / 10)
    if config.fading == "rayleigh":
        gain = gain * -np.log1p(-fade)
    span = config.input_tokens_max - config.input_tokens_min + 1
    return Tasks(gain, config.input_tokens_min + np.floor(length * span))


def _streams(config: HetEdgeConfig, drop: int) -> Array:
    """Draw numbers in [0, 1) for place, fading and length of a drop, (3, K)."""
    return np.stack(
        [
            np.random.default_rng((config.seed, drop, purpose)).random(config.users)
            for purpose in range(3)
        ]
    )
