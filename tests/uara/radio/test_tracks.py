"""Sites stand on a lattice; devices keep their speed, their area and their distance."""

from __future__ import annotations

import numpy as np
import pytest

from uara.radio.tracks import (
    area_radius_m,
    draw_clustered_start_m,
    draw_tracks,
    site_positions_m,
)


def distances(points):
    gap = points[:, None] - points[None]
    return np.hypot(gap[..., 0], gap[..., 1])


@pytest.mark.parametrize("num_servers", [2, 3, 4, 7, 12])
def test_adjacent_sites_are_one_inter_site_distance_apart(num_servers):
    site = site_positions_m(num_servers, 300.0)
    gap = distances(site) + 1e9 * np.eye(num_servers)
    assert site.shape == (num_servers, 2)
    np.testing.assert_allclose(gap.min(axis=1), 300.0)
    np.testing.assert_allclose(site.mean(axis=0), 0.0, atol=1e-9)


def test_known_layouts():
    np.testing.assert_allclose(site_positions_m(1, 300.0), [[0, 0]], atol=1e-9)
    three, seven = site_positions_m(3, 300.0), site_positions_m(7, 300.0)
    np.testing.assert_allclose(np.hypot(*three.T), 300 / np.sqrt(3))
    np.testing.assert_allclose(np.sort(np.hypot(*seven.T)), [0] + [300] * 6, atol=1e-9)
    assert area_radius_m(three, 300.0) == pytest.approx(300 / np.sqrt(3))
    assert area_radius_m(site_positions_m(1, 300.0), 300.0) == 150.0


def test_devices_move_at_their_speed_inside_the_area():
    site = site_positions_m(3, 300.0)
    radius = area_radius_m(site, 300.0)
    speed = np.array([0.0, 0.8, 3.0, 8.0, 30.0])
    position, velocity = draw_tracks(np.random.default_rng(2), speed, 400, 0.5, 0.15, site, radius)
    assert position.shape == velocity.shape == (400, 5, 2)
    np.testing.assert_allclose(np.diff(position, axis=0), 0.5 * velocity[:-1], atol=1e-9)
    np.testing.assert_allclose(np.hypot(*np.moveaxis(velocity, -1, 0)), np.tile(speed, (400, 1)))
    assert np.hypot(position[..., 0], position[..., 1]).max() <= radius
    gap = position[:, :, None] - site
    assert np.hypot(gap[..., 0], gap[..., 1]).min() >= 10.0


def test_headings_turn_slowly():
    """Far from any border the change of heading per slot has the given standard deviation."""
    speed = np.full(200, 1.0)
    _, velocity = draw_tracks(
        np.random.default_rng(3), speed, 40, 0.25, 0.2, np.array([[1e6, 0.0]]), 1e5
    )
    heading = np.unwrap(np.arctan2(velocity[..., 1], velocity[..., 0]), axis=0)
    assert np.diff(heading, axis=0).std() == pytest.approx(0.2 * np.sqrt(0.25), rel=0.05)


def test_a_straight_way_is_mirrored_at_the_border():
    """Position times velocity (angular momentum) stays; the way across a disc ends in time."""
    far = np.array([[1e6, 0.0]])
    position, velocity = draw_tracks(
        np.random.default_rng(4), np.ones(20), 300, 1.0, 0.0, far, 100.0
    )
    momentum = position[..., 0] * velocity[..., 1] - position[..., 1] * velocity[..., 0]
    np.testing.assert_allclose(momentum, np.tile(momentum[0], (300, 1)), atol=1e-6)
    turned = np.abs(np.diff(velocity, axis=0)).max(axis=-1) > 1e-9
    assert turned[:201].any(axis=0).all()


def test_hot_spots_hold_all_devices_within_their_radius():
    site = site_positions_m(3, 300.0)
    radius = area_radius_m(site, 300.0)
    start = draw_clustered_start_m(
        np.random.default_rng(5), 300, 2, 30.0, site, radius, clearance_m=20.0
    )
    gap = distances(start)
    apart = gap > 60.0
    first = ~apart[0]
    assert 60 < first.sum() < 240
    assert gap[np.ix_(first, first)].max() <= 60.0
    assert gap[np.ix_(~first, ~first)].max() <= 60.0
    to_site = start[:, None] - site
    assert np.hypot(to_site[..., 0], to_site[..., 1]).min() >= 20.0
    assert np.hypot(*start.T).max() <= radius


def test_clearance_and_starts_are_kept():
    site = np.zeros((1, 2))
    start = np.array([[50.0, 0.0], [0.0, 80.0]])
    position, _ = draw_tracks(
        np.random.default_rng(7), np.full(2, 5.0), 300, 0.5, 0.3, site, 100.0,
        start_m=start, clearance_m=35.0,
    )  # fmt: skip
    np.testing.assert_array_equal(position[0], start)
    assert np.hypot(position[..., 0], position[..., 1]).min() >= 35.0
