"""What the links of a network receive from each other where all servers use the whole band.

Shape legend: B networks, M devices, E servers.

A transmitter is described by its mean power density: its power over the whole band, times the share
of time in which it transmits (its activity). Scheduling spreads everybody's transmissions over band
and slot, so a receiver meets the mean density of the others everywhere. Devices of one server are
orthogonal to each other, and the two directions have bands of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.radio.link import LinkConfig


def mean_density_w_per_hz(power_w: Tensor, band_hz: Tensor, activity: Tensor) -> Tensor:
    """Average a transmitter's power over the band and over time.

    Args:
        power_w: while it transmits.
        band_hz: the whole band, not the transmitter's share of it.
        activity: share of time in which it transmits, in [0, 1].

    Returns:
        W/Hz, broadcast shape of the arguments.
    """
    return power_w * activity / band_hz


def uplink_interference_w_per_hz(gain: Tensor, server: Tensor, density_w_per_hz: Tensor) -> Tensor:
    """Add up what each server receives from the devices of other servers.

    Args:
        gain: (B, M, E) linear.
        server: (B, M) long, where devices transmit to; -1 for one that disturbs every server.
        density_w_per_hz: (B, M) mean power density of devices; 0 for those that are silent.

    Returns:
        (B, E) W/Hz.
    """
    return _heard_elsewhere(gain, server, density_w_per_hz).sum(1)


def uplink_interference_by_pair_w_per_hz(
    gain: Tensor, server: Tensor, density_w_per_hz: Tensor
) -> Tensor:
    """Add up what would disturb a device's uplink if it, and nobody else, moved to a server.

    At the device's own server it is `uplink_interference_w_per_hz`. To judge a decision before it
    is taken, give the servers and densities of the last slot, or those that are expected.

    Args:
        gain: (B, M, E) linear.
        server: (B, M) long, where devices transmit to; -1 for one that disturbs every server.
        density_w_per_hz: (B, M) mean power density of devices; 0 for those that are silent.

    Returns:
        (B, M, E) W/Hz.
    """
    heard = _heard_elsewhere(gain, server, density_w_per_hz)
    # A matrix of ones leaves nothing to cancel, where a total minus the own part would.
    return _all_but_one(gain.shape[1], gain) @ heard


def downlink_interference_by_pair_w_per_hz(gain: Tensor, density_w_per_hz: Tensor) -> Tensor:
    """Add up what a device on a server receives from the other servers.

    Args:
        gain: (B, M, E) linear.
        density_w_per_hz: (B, E) mean power density of servers; 0 for those that are silent.

    Returns:
        (B, M, E) W/Hz.
    """
    received = gain * density_w_per_hz.unsqueeze(1)
    return received @ _all_but_one(gain.shape[2], gain)


def uplink_noise_w_per_hz(
    config: LinkConfig, gain: Tensor, server: Tensor, density_w_per_hz: Tensor
) -> float | Tensor:
    """Compute noise plus interference of each device's uplink to its server.

    Args:
        config: receiver noise, and whether servers share a band.
        gain: (B, M, E) linear.
        server: (B, M) long, valid indices.
        density_w_per_hz: (B, M) mean power density of devices.

    Returns:
        W/Hz: the noise alone under `orthogonal`, (B, M) under `reuse1`.
    """
    if config.interference == "orthogonal":
        return config.uplink_noise_w_per_hz
    heard = uplink_interference_w_per_hz(gain, server, density_w_per_hz)
    return heard.gather(1, server) + config.uplink_noise_w_per_hz


def uplink_noise_by_pair_w_per_hz(
    config: LinkConfig, gain: Tensor, server: Tensor, density_w_per_hz: Tensor
) -> float | Tensor:
    """Compute noise plus interference of each device's uplink to any server.

    Arguments are those of `uplink_interference_by_pair_w_per_hz`; the result is the noise alone
    under `orthogonal`, (B, M, E) W/Hz under `reuse1`.
    """
    if config.interference == "orthogonal":
        return config.uplink_noise_w_per_hz
    heard = uplink_interference_by_pair_w_per_hz(gain, server, density_w_per_hz)
    return heard.add_(config.uplink_noise_w_per_hz)


def downlink_noise_by_pair_w_per_hz(
    config: LinkConfig, gain: Tensor, density_w_per_hz: Tensor
) -> float | Tensor:
    """Compute noise plus interference of each device's downlink from any server.

    Arguments are those of `downlink_interference_by_pair_w_per_hz`; the result is the noise alone
    under `orthogonal`, (B, M, E) W/Hz under `reuse1`.
    """
    if config.interference == "orthogonal":
        return config.downlink_noise_w_per_hz
    heard = downlink_interference_by_pair_w_per_hz(gain, density_w_per_hz)
    return heard.add_(config.downlink_noise_w_per_hz)


def _heard_elsewhere(gain: Tensor, server: Tensor, density_w_per_hz: Tensor) -> Tensor:
    """Compute what each server receives from each device of another server, (B, M, E)."""
    own = server.unsqueeze(-1) == torch.arange(gain.shape[2], device=gain.device)
    return (gain * density_w_per_hz.unsqueeze(-1)).masked_fill_(own, 0.0)


def _all_but_one(size: int, like: Tensor) -> Tensor:
    """Make the (size, size) matrix whose product with a vector adds up all its other entries."""
    return 1 - torch.eye(size, dtype=like.dtype, device=like.device)
