"""Rays: the coherent sum is Sionna's, and the sector antenna is in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sionna.phy.channel import cir_to_ofdm_channel, tr38901

from uara.radio.rays import draw_rays
from uara.radio.topology import Chunk, snapshot_offsets_s, tone_offsets_hz


def test_tones_and_snapshots_lie_evenly_about_the_middle():
    torch.testing.assert_close(tone_offsets_hz(8e6, 4), torch.tensor([-3e6, -1e6, 1e6, 3e6]))
    torch.testing.assert_close(snapshot_offsets_s(0.6, 3), torch.tensor([-0.2, 0.0, 0.2]))


def test_a_los_link_has_the_gain_of_its_sector_antenna(ring, ring_config, draw, wavenumber):
    """8 dBi towards the device, at most 10 dB less at a sector's edge, some of it diffused."""
    topology = draw(ring_config(400), ring(400, 60.0))
    links, now = topology.links, torch.zeros(1)
    diffuse = draw_rays(topology).diffuse(links, tone_offsets_hz(5e6, 8), now, wavenumber)
    power = links.combine(diffuse, now, wavenumber).abs().square().mean((-2, -1))
    gain_db = 10 * torch.log10(power / links.large_scale_gain).flatten()
    is_los = links.is_los.flatten()
    angle = torch.linspace(0, 2 * math.pi, 401)[:-1]
    # The site stands at the centre, so its first sector looks along the first axis.
    off_boresight = (angle - (angle / (2 * math.pi / 3)).round() * 2 * math.pi / 3).abs()
    ahead = gain_db[is_los & (off_boresight < math.radians(15))]
    edge = gain_db[is_los & (off_boresight > math.radians(50))]
    assert 5.5 < float(ahead.median()) < 8.5
    assert -3.0 < float(edge.median()) < 3.0


@pytest.mark.parametrize(
    ("toward", "sector_rad"), [((1.0, 0.3), 0.0), ((-0.4, 1.0), 2 * math.pi / 3)]
)
def test_the_coherent_sum_is_sionnas(ring_config, draw, wavenumber, toward, sector_rad):
    """Given the same rays, Sionna's generator for any arrays agrees to the rounding of phases."""
    start = 70.0 * np.array(toward) / np.hypot(*toward)
    velocity = np.tile([3.0, -1.0], (4, 5, 1))
    position = np.tile(start, (4, 5, 1)) + 0.5 * np.arange(4)[:, None, None] * velocity
    chunk = Chunk(position, velocity, np.zeros(5, bool), np.zeros((5, 1)))
    topology = draw(ring_config(5, num_slots=4), chunk)
    links, rays = topology.links, draw_rays(topology)
    assert links.is_los.any()
    assert not links.is_los.all()
    tones, step_s = torch.tensor([-2e6, 0.0, 1.5e6]), 0.003
    offset_s = step_s * torch.arange(3)
    got = links.combine(rays.diffuse(links, tones, offset_s, wavenumber), offset_s, wavenumber)

    array = {"num_rows_per_panel": 1, "num_cols_per_panel": 1, "polarization": "single"}
    array |= {"polarization_type": "V", "carrier_frequency": 3.5e9, "device": "cpu"}
    generator = tr38901.ChannelCoefficientsGenerator(
        3.5e9,
        tr38901.PanelArray(antenna_pattern="38.901", **array),
        tr38901.PanelArray(antenna_pattern="omni", **array),
        subclustering=True,
        device="cpu",
    )
    placed = tr38901.Topology(
        velocities=links.velocity_m_s,
        moving_end="rx",
        los_aoa=links.los_aoa,
        los_aod=links.los_aod,
        los_zoa=links.los_zoa,
        los_zod=links.los_zod,
        los=links.is_los,
        distance_3d=links.distance_m,
        tx_orientations=torch.tensor([sector_rad, 0.0, 0.0]).expand(5, 1, 3),
        rx_orientations=torch.zeros(5, 4, 3),
    )
    h, delay_s = generator(
        3, 1 / step_s, links.k_factor, rays.rays, placed, rays.cluster_delay_spread_s
    )
    h = h * links.large_scale_gain.sqrt()[..., None, None, None, None]
    # To Sionna's order: receivers before transmitters, antennas beside them.
    wanted = cir_to_ofdm_channel(
        tones, h.permute(0, 2, 4, 1, 5, 3, 6), delay_s.permute(0, 2, 1, 3), normalize=False
    )[:, :, 0, :, 0]  # (D, T, E, S, F)
    wanted = wanted.permute(0, 2, 1, 4, 3)
    error = (got - wanted).abs() / links.large_scale_gain.sqrt()[..., None, None]
    assert float(error.max()) < 5e-3
