"""One site in the middle of a ring of devices, as most tests of channels want it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sionna.phy import config as sionna_config

from uara.radio.bank import BankConfig
from uara.radio.topology import SPEED_OF_LIGHT_M_S, Chunk, Topology, draw_topology

SITE_M = np.zeros((1, 2))


@pytest.fixture(scope="session")
def ring_config() -> Callable[..., BankConfig]:
    """Describe a bank of one site and one slot."""

    def make(num_devices: int, **fields: object) -> BankConfig:
        return BankConfig(**{"num_slots": 1} | fields, num_devices=num_devices, num_servers=1)

    return make


@pytest.fixture(scope="session")
def ring() -> Callable[..., Chunk]:
    """Place devices evenly on a circle about the site; they go in random directions."""

    def make(
        num_devices: int,
        radius_m: float,
        *,
        speed_m_s: float = 0.0,
        slot_s: float = 0.5,
        slots: int = 1,
        indoor: bool = False,
    ) -> Chunk:
        rng = np.random.default_rng(3)
        angle = np.linspace(0, 2 * np.pi, num_devices, endpoint=False)
        heading = rng.uniform(0, 2 * np.pi, num_devices)
        start, way = (np.stack([np.cos(a), np.sin(a)], -1) for a in (angle, heading))
        velocity = np.tile(speed_m_s * way, (slots, 1, 1))
        time_s = slot_s * np.arange(slots)
        return Chunk(
            position_m=radius_m * start + time_s[:, None, None] * velocity,
            velocity_m_s=velocity,
            is_indoor=np.full(num_devices, indoor),
            depth_share=rng.random((num_devices, 1)),
        )

    return make


@pytest.fixture(scope="session")
def draw() -> Callable[[BankConfig, Chunk], Topology]:
    """Let Sionna draw the links of a ring, the same ones each time."""

    def make(config: BankConfig, chunk: Chunk) -> Topology:
        sionna_config.seed = 7
        with torch.no_grad():
            return draw_topology(config, SITE_M, chunk)

    return make


@pytest.fixture(scope="session")
def wavenumber() -> float:
    """2 pi over the wavelength at 3.5 GHz."""
    return 2 * math.pi * 3.5e9 / SPEED_OF_LIGHT_M_S
