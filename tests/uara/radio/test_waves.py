"""Plane waves: Clarke's autocorrelation, Rice's moments, selectivity, and the gains of rays."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import j0

from uara.radio.rays import draw_rays
from uara.radio.sionna_bank import chunk_gain
from uara.radio.topology import Chunk
from uara.radio.waves import draw_waves

NUM = 1200


def isotropic(links):
    return replace(links, pattern=lambda zenith, azimuth: (torch.ones_like(azimuth), None))


def waves_of(topology):
    return draw_waves(topology, torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def shadowed(ring, ring_config, draw):
    """Links without line of sight on which devices move at 3 m/s."""
    topology = draw(ring_config(NUM), ring(NUM, 300.0, speed_m_s=3.0, indoor=True))
    return isotropic(topology.links), waves_of(topology)


def test_autocorrelation_within_a_slot_is_clarkes(shadowed, wavenumber):
    links, waves = shadowed
    lag_s = torch.linspace(0, 0.06, 30)
    response = waves.diffuse(links, torch.zeros(1), lag_s, wavenumber)[:, 0, 0, 0]
    correlation = (response * response[:, :1].conj()).real.mean(0)
    wanted = j0(wavenumber * 3.0 * lag_s.numpy())
    np.testing.assert_allclose(correlation.numpy(), wanted, atol=4 / NUM**0.5)


def test_autocorrelation_from_slot_to_slot_is_clarkes(ring, ring_config, draw, wavenumber):
    """Slots of 3 ms in which a device at 3 m/s goes a tenth of a wavelength."""
    config = ring_config(NUM, num_slots=12, slot_s=3e-3)
    topology = draw(config, ring(NUM, 300.0, speed_m_s=3.0, slot_s=3e-3, slots=12, indoor=True))
    links, waves = isotropic(topology.links), waves_of(topology)
    response = waves.diffuse(links, torch.zeros(1), torch.zeros(1), wavenumber)[:, 0, :, 0, 0]
    correlation = (response * response[:, :1].conj()).real.mean(0)
    wanted = j0(wavenumber * 3.0 * 3e-3 * np.arange(12))
    np.testing.assert_allclose(correlation.numpy(), wanted, atol=4 / NUM**0.5)


def test_a_place_keeps_its_fading(ring, ring_config, draw, wavenumber):
    """Ten kilometres on and back: the phase of a wave is one of the place."""
    there = ring(20, 300.0, slots=3, indoor=True)
    way = np.array([0.0, 1e4, 0.0])[:, None, None]
    chunk = Chunk(there.position_m + way, *(getattr(there, f) for f in
                  ("velocity_m_s", "is_indoor", "depth_share")))  # fmt: skip
    topology = draw(ring_config(20, num_slots=3), chunk)
    links, waves = isotropic(topology.links), waves_of(topology)
    response = waves.diffuse(links, torch.zeros(1), torch.zeros(1), wavenumber)[:, 0, :, 0, 0]
    torch.testing.assert_close(response[:, 2], response[:, 0], atol=1e-4, rtol=0)
    assert (response[:, 1] - response[:, 0]).abs().median() > 0.3


def test_power_is_one_on_average_and_rayleigh_distributed(shadowed, wavenumber):
    """A sum of waves of powers a has E|h|^4 = 2 - sum of a^2."""
    links, waves = shadowed
    instants = torch.linspace(-50, 50, 40)
    power = waves.diffuse(links, torch.zeros(1), instants, wavenumber).abs().square()
    _, profile = waves.profile(links)
    torch.testing.assert_close(profile.sum(-1), torch.ones_like(profile.sum(-1)))
    assert float(power.mean()) == pytest.approx(1.0, abs=0.02)
    wanted = 2 - float((profile.square().sum(-1) / waves.arrival_rad.shape[-1]).mean())
    assert float(power.square().mean()) == pytest.approx(wanted, rel=0.04)


def test_line_of_sight_has_the_moments_of_rice(ring, ring_config, draw, wavenumber):
    """With A = K / (K + 1) and B = 1 - A: E|h|^4 = A^2 + 4 A B + B^2 E|diffuse|^4."""
    topology = draw(ring_config(NUM), ring(NUM, 30.0, speed_m_s=3.0))
    links, waves = isotropic(topology.links), waves_of(topology)
    instants = torch.linspace(-50, 50, 40)
    diffuse = waves.diffuse(links, torch.zeros(1), instants, wavenumber)
    response = links.combine(diffuse, instants, wavenumber)[:, 0, 0, 0]
    is_los = links.is_los.flatten()
    assert is_los.sum() > 300
    power = response.abs().square()[is_los] / links.large_scale_gain.flatten()[is_los, None]
    k = links.k_factor.flatten()[is_los]
    fourth = 2 - waves.profile(links)[1][is_los, 0, 0].square().sum(-1) / 4
    wanted = (k / (k + 1)) ** 2 + 4 * k / (k + 1) ** 2 + fourth / (k + 1) ** 2
    assert float(power.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(power.square().mean()) == pytest.approx(float(wanted.mean()), rel=0.03)


def test_the_mean_over_tones_varies_as_the_delays_say(shadowed, wavenumber):
    """Two tones' |h|^2 have the covariance |correlation|^2 - sum of a^2 (Wick, few waves)."""
    links, waves = shadowed
    tone_hz = (torch.arange(8) + 0.5) * 5e6 / 8
    instants = torch.linspace(-50, 50, 40)
    power = waves.diffuse(links, tone_hz, instants, wavenumber).abs().square()
    got = power.mean(-2).var()
    delay_s, share = (x[:, 0, 0].double() for x in waves.profile(links))
    gap_hz = (tone_hz[:, None] - tone_hz).flatten().double()
    turn = torch.exp(-2j * math.pi * delay_s[:, None] * gap_hz[:, None])  # (D, F^2, C)
    wanted = (turn * share[:, None]).sum(-1).abs().square().mean()
    wanted -= share.square().sum(-1).mean() / waves.arrival_rad.shape[-1]
    assert 0.05 < float(wanted) < 0.9
    assert float(got) == pytest.approx(float(wanted), rel=0.07)


@pytest.mark.parametrize(("radius_m", "indoor"), [(300.0, True), (40.0, False)])
def test_the_profile_has_the_delay_spread_of_its_link(ring, ring_config, draw, radius_m, indoor):
    """With the direct path of power K / (K + 1) at delay 0 where there is one."""
    topology = draw(ring_config(NUM), ring(NUM, radius_m, indoor=indoor))
    links, waves = topology.links, waves_of(topology)
    delay_s, share = (x[:, 0, 0] for x in waves.profile(links))
    state = links.is_los.flatten() != indoor
    assert state.sum() > 500
    share = share / (1 + torch.where(links.is_los, links.k_factor, 0.0)[:, 0])
    mean_s = (share * delay_s).sum(-1)
    spread_s = ((share * delay_s.square()).sum(-1) - mean_s.square()).sqrt()
    ratio = (spread_s / links.delay_spread_s.flatten())[state]
    assert float(ratio.median()) == pytest.approx(1.0, abs=0.15)
    assert delay_s.min() == 0


@pytest.mark.parametrize("state", [True, False])
def test_the_sites_antenna_counts_as_with_rays(ring, ring_config, draw, wavenumber, state):
    """Mean and spread over links, in dB, of the diffuse power averaged over time and tones."""
    topology = draw(ring_config(800), ring(800, 50.0, speed_m_s=8.0))
    links, lags_s = topology.links, torch.linspace(-20, 20, 30)
    chosen = links.is_los.flatten() == state
    levels_db = []
    for fading in (draw_rays(topology), waves_of(topology)):
        response = fading.diffuse(links, torch.linspace(-4e7, 4e7, 6), lags_s, wavenumber)
        levels_db.append(10 * response.abs().square().mean((-2, -1)).flatten()[chosen].log10())
    rays_db, waves_db = levels_db
    assert float(waves_db.mean()) == pytest.approx(float(rays_db.mean()), abs=0.4)
    assert float(waves_db.std()) == pytest.approx(float(rays_db.std()), rel=0.15)


@pytest.mark.parametrize("scenario", ["umi", "uma", "rma"])
def test_both_ways_of_fading_have_the_same_marginals(scenario, ring_config):
    """5, 25, 50, 75 and 95 % quantiles of gain within 1 dB, given the same path losses."""
    from sionna.phy import config as sionna_config

    num, rng = 1600, np.random.default_rng(0)
    reach = ring_config(1, scenario=scenario).inter_site_distance_m
    angle, heading = rng.uniform(0, 2 * np.pi, (2, num))
    away = np.sqrt(rng.uniform(40**2, reach**2, num))
    speed = rng.uniform(0.8, 8.0, num)
    chunk = Chunk(
        position_m=(away * [np.cos(angle), np.sin(angle)]).T[None],
        velocity_m_s=(speed * [np.cos(heading), np.sin(heading)]).T[None],
        is_indoor=rng.random(num) < 0.3,
        depth_share=rng.random((num, 1)),
    )
    quantiles = {}
    for fading in ("cir", "large_scale"):
        sionna_config.seed = 5
        config = ring_config(num, scenario=scenario, fading=fading)
        gain, _ = chunk_gain(config, np.zeros((1, 2)), chunk, torch.Generator().manual_seed(5))
        quantiles[fading] = np.percentile(10 * np.log10(gain), [5, 25, 50, 75, 95])
    np.testing.assert_allclose(quantiles["large_scale"], quantiles["cir"], atol=1.0)
