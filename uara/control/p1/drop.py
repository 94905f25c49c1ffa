"""Drops devices over sites in a square and draws their gains after 3GPP TR 38.901, UMi.

Shape legend: B networks, M devices, E servers.

Path loss, line of sight and shadowing of the street canyon (Tables 7.4.1-1, 7.4.2-1), everybody
outdoors, antennas without gain, no fast fading: the mean over a slot and a band.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uara.radio.tracks import SITE_DISTANCE_MIN_M, site_positions_m

SITE_HEIGHT_M = 10.0
DEVICE_HEIGHT_M = 1.5
SPEED_OF_LIGHT_M_S = 299_792_458.0
SHADOWING_LOS_DB = 4.0
SHADOWING_NLOS_DB = 7.82


def site_distance_m(num_servers: int, area_side_m: float) -> float:
    """Compute the distance of adjacent sites of a triangular lattice that fills a square."""
    return area_side_m * math.sqrt(2 / (math.sqrt(3) * num_servers))


def line_of_sight_probability(distance_m: Tensor) -> Tensor:
    """Compute the chance of line of sight at a horizontal distance (TR 38.901 Table 7.4.2-1)."""
    far = 18 / distance_m + (-distance_m / 36).exp() * (1 - 18 / distance_m)
    return torch.where(distance_m <= 18, 1.0, far)


def path_loss_db(distance_m: Tensor, is_los: Tensor, carrier_hz: float) -> Tensor:
    """Compute the path loss of UMi street canyon (TR 38.901 Table 7.4.1-1).

    Args:
        distance_m: horizontal, any shape.
        is_los: bool, same shape.
        carrier_hz: carrier frequency.
    """
    height_m = SITE_HEIGHT_M - DEVICE_HEIGHT_M
    slant_m = (distance_m.square() + height_m**2).sqrt()
    carrier_db = 20 * math.log10(carrier_hz / 1e9)
    effective = (SITE_HEIGHT_M - 1) * (DEVICE_HEIGHT_M - 1)
    break_m = 4 * effective * carrier_hz / SPEED_OF_LIGHT_M_S
    near = 32.4 + 21 * slant_m.log10() + carrier_db
    beyond_db = 9.5 * math.log10(break_m**2 + height_m**2)
    far = 32.4 + 40 * slant_m.log10() + carrier_db - beyond_db
    los = torch.where(distance_m <= break_m, near, far)
    nlos_carrier_db = 21.3 * math.log10(carrier_hz / 1e9)
    nlos = 35.3 * slant_m.log10() + 22.4 + nlos_carrier_db - 0.3 * (DEVICE_HEIGHT_M - 1.5)
    return torch.where(is_los, los, torch.maximum(los, nlos))


def draw_gains(
    num_networks: int,
    num_devices: int,
    num_servers: int,
    area_side_m: float,
    carrier_hz: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw linear power gains (B, M, E) of devices uniform over a square.

    Sites stand on a triangular lattice about the middle. A device nearer to a site than the 10 m of
    Table 7.2-1 counts as 10 m away.
    """
    lattice = site_positions_m(num_servers, site_distance_m(num_servers, area_side_m))
    site = torch.from_numpy(lattice)
    shape = (num_networks, num_devices, num_servers)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    device = (uniform(num_networks, num_devices, 2) - 0.5) * area_side_m
    distance_m = torch.linalg.vector_norm(device[:, :, None] - site, dim=-1)
    distance_m = distance_m.clamp_min(SITE_DISTANCE_MIN_M)
    is_los = uniform(*shape) < line_of_sight_probability(distance_m)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    shadowing_db = normal * torch.where(is_los, SHADOWING_LOS_DB, SHADOWING_NLOS_DB)
    loss_db = path_loss_db(distance_m, is_los, carrier_hz) + shadowing_db
    return 10 ** (-loss_db / 10)
