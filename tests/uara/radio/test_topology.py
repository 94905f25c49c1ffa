"""Path loss, line of sight, shadowing and penetration against the tables of 3GPP TR 38.901."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

GHZ, C = 3.5, 3e8  # Table 7.4.1-1 takes 3e8 m/s
HEIGHTS = {"umi": (10.0, 1.5), "uma": (25.0, 1.5), "rma": (35.0, 1.5)}  # site, device


def umi_los(d2, d3, hs, hd):
    breakpoint_m = 4 * (hs - 1) * (hd - 1) * GHZ * 1e9 / C
    near = 32.4 + 21 * math.log10(d3) + 20 * math.log10(GHZ)
    far = 32.4 + 40 * math.log10(d3) + 20 * math.log10(GHZ)
    return near if d2 <= breakpoint_m else far - 9.5 * math.log10(breakpoint_m**2 + (hs - hd) ** 2)


def umi_nlos(d2, d3, hs, hd):
    loss = 35.3 * math.log10(d3) + 22.4 + 21.3 * math.log10(GHZ) - 0.3 * (hd - 1.5)
    return max(loss, umi_los(d2, d3, hs, hd))


def uma_los(d2, d3, hs, hd):
    breakpoint_m = 4 * (hs - 1) * (hd - 1) * GHZ * 1e9 / C
    near = 28 + 22 * math.log10(d3) + 20 * math.log10(GHZ)
    far = 28 + 40 * math.log10(d3) + 20 * math.log10(GHZ)
    return near if d2 <= breakpoint_m else far - 9 * math.log10(breakpoint_m**2 + (hs - hd) ** 2)


def uma_nlos(d2, d3, hs, hd):
    loss = 13.54 + 39.08 * math.log10(d3) + 20 * math.log10(GHZ) - 0.6 * (hd - 1.5)
    return max(loss, uma_los(d2, d3, hs, hd))


def rma_los(d2, d3, hs, hd, house=5.0):
    def first(d):
        slope = min(0.03 * house**1.72, 10)
        offset = min(0.044 * house**1.72, 14.77)
        free = 20 * math.log10(40 * math.pi * d * GHZ / 3)
        return free + slope * math.log10(d) - offset + 0.002 * math.log10(house) * d

    breakpoint_m = 2 * math.pi * hs * hd * GHZ * 1e9 / C
    if d2 <= breakpoint_m:
        return first(d3)
    return first(breakpoint_m) + 40 * math.log10(d3 / breakpoint_m)


def rma_nlos(d2, d3, hs, hd, house=5.0, street=20.0):
    loss = (
        161.04
        - 7.1 * math.log10(street)
        + 7.5 * math.log10(house)
        - (24.37 - 3.7 * (house / hs) ** 2) * math.log10(hs)
        + (43.42 - 3.1 * math.log10(hs)) * (math.log10(d3) - 3)
        + 20 * math.log10(GHZ)
        - (3.2 * math.log10(11.75 * hd) ** 2 - 4.97)
    )
    return max(loss, rma_los(d2, d3, hs, hd))


def los_share(scenario, d2):
    """Table 7.4.2-1 for devices below 13 m."""
    if scenario == "rma":
        return math.exp(-(d2 - 10) / 1000)
    decay = {"umi": 36, "uma": 63}[scenario]
    return 18 / d2 + math.exp(-d2 / decay) * (1 - 18 / d2)


LOSSES = {"umi": (umi_nlos, umi_los), "uma": (uma_nlos, uma_los), "rma": (rma_nlos, rma_los)}
# Shadowing in dB without and with line of sight, the latter before and beyond the breakpoint.
SHADOWING = {"umi": (7.82, 4, 4), "uma": (6, 4, 4), "rma": (8, 4, 6)}
PLACES = [
    *(("umi", d, far) for d, far in ((40.0, False), (150.0, False), (300.0, True))),
    *(("uma", d, far) for d, far in ((60.0, False), (300.0, False), (700.0, True))),
    *(("rma", d, far) for d, far in ((300.0, False), (2000.0, False), (4500.0, True))),
]


@pytest.mark.parametrize(("scenario", "distance_m", "beyond"), PLACES)
def test_links_follow_the_tables(ring, ring_config, draw, scenario, distance_m, beyond):
    """Tables 7.4.1-1 and 7.4.2-1; no formula here is the builder's."""
    num = 1500
    links = draw(config := ring_config(num, scenario=scenario), ring(num, distance_m)).links
    site_m, device_m = HEIGHTS[scenario]
    assert (config.site_height_m, config.device_height_m) == (site_m, device_m)
    direct_m = math.hypot(distance_m, site_m - device_m)
    is_los = links.is_los.flatten()
    loss_db = -10 * torch.log10(links.large_scale_gain).flatten()

    share = los_share(scenario, distance_m)
    spread = math.sqrt(share * (1 - share) / num)
    assert float(is_los.float().mean()) == pytest.approx(share, abs=4 * spread)
    sigma_nlos, *sigmas_los = SHADOWING[scenario]
    for state, sigma in ((False, sigma_nlos), (True, sigmas_los[beyond])):
        got = loss_db[is_los == state].double()
        assert len(got) >= 10
        wanted = LOSSES[scenario][state](distance_m, direct_m, site_m, device_m)
        assert float(got.mean()) == pytest.approx(wanted, abs=4 * sigma / len(got) ** 0.5)
        assert float(got.std()) == pytest.approx(sigma, rel=3 / (2 * len(got)) ** 0.5)


@pytest.mark.parametrize("scenario", ["umi", "uma", "rma"])
def test_path_loss_without_shadowing_is_exact(ring, ring_config, draw, scenario):
    topology = draw(ring_config(200, scenario=scenario), ring(200, 120.0))
    site_m, device_m = HEIGHTS[scenario]
    direct_m = math.hypot(120.0, site_m - device_m)
    for state in (False, True):
        got = topology.large_scale.pathloss[topology.links.is_los == state].numpy()
        wanted = LOSSES[scenario][state](120.0, direct_m, site_m, device_m)
        np.testing.assert_allclose(got, wanted, atol=0.01)


def test_walls_cost_20_db_below_6_ghz(ring, ring_config, draw):
    """Table 7.4.3-3: 20 dB and half a dB per metre of depth, which is uniform up to 25 m."""
    inside = draw(ring_config(800), ring(800, 120.0, indoor=True)).large_scale.pathloss
    direct_m = math.hypot(120.0, 8.5)
    wall_db = inside.numpy().ravel() - umi_nlos(120.0, direct_m, 10.0, 1.5)
    wall_db = wall_db[wall_db > 19.99]  # the others have line of sight outside their wall
    assert wall_db.max() <= 32.5 + 0.01
    assert wall_db.mean() == pytest.approx(26.25, abs=4 * 12.5 / 12**0.5 / len(wall_db) ** 0.5)


@pytest.mark.parametrize(("depth", "least", "most"), [("track", 0.0, 0.02), ("slot", 1.0, 7.0)])
def test_an_indoor_device_keeps_its_depth_for_a_slot_or_for_the_track(
    ring, ring_config, draw, depth, least, most
):
    config = ring_config(30, num_slots=5, indoor_depth=depth)
    still = draw(config, ring(30, 400.0, slots=5, indoor=True))
    spread = still.large_scale.pathloss.std(dim=-1).mean()
    assert least <= float(spread) <= most
