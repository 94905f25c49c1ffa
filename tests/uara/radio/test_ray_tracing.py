"""What the traced builder does without a tracer: streets, tracks, waypoints, antennas, replay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uara.radio.ray_tracing import (
    GAIN_FLOOR_DB,
    Ground,
    TracedPaths,
    UnfitSceneError,
    _ground_of,
    draw_tracks,
    main,
    replay,
    sector_amplitude,
    waypoints_of,
)

CONFIG = {
    "num_slots": 80, "num_devices": 5, "slot_s": 0.5, "speed_min_m_s": 1.0, "speed_max_m_s": 8.0,
    "turn_rad": 0.15, "carrier_hz": 3e9, "bandwidth_hz": 4e6, "num_tones": 4, "num_snapshots": 2,
}  # fmt: skip
WAVE_M = 299_792_458.0 / 3e9


@pytest.fixture
def cross() -> Ground:
    """Two streets of 9 m that cross between four blocks of 20 m height, and a closed yard."""
    height = np.full((80, 80), 20.0)
    height[36:45] = 0.0
    height[:, 36:45] = 0.0
    height[8:16, 8:16] = 0.0
    return _ground_of(height, -40.0, 0.0, 40.0)


def heights_at(ground: Ground, position_m):
    return ground.height_m[ground.pixel(position_m)]


def test_devices_stay_in_the_street_on_their_whole_way(cross):
    position, velocity = draw_tracks(np.random.default_rng(3), CONFIG, cross)
    between = position[..., None, :] + np.linspace(0, 0.5, 21)[:, None] * velocity[..., None, :]
    assert heights_at(cross, between).max() == 0.0
    assert np.hypot(*np.moveaxis(position, -1, 0)).max() <= 40.0
    speed = np.hypot(*np.moveaxis(velocity, -1, 0))
    moving = speed > 0
    assert moving.mean() > 0.9
    np.testing.assert_allclose(
        speed[moving], np.broadcast_to(speed.max(axis=0), speed.shape)[moving]
    )


def test_tracks_are_connected_and_reproducible(cross):
    position, velocity = draw_tracks(np.random.default_rng(3), CONFIG, cross)
    np.testing.assert_allclose(position[1:], position[:-1] + 0.5 * velocity[:-1])
    again, _ = draw_tracks(np.random.default_rng(3), CONFIG, cross)
    np.testing.assert_array_equal(position, again)


def test_a_yard_without_a_way_out_is_no_street(cross):
    assert cross.is_walkable[40, 20]
    assert not cross.is_walkable[12, 12]
    assert not cross.is_walkable[36, 10]  # touches the wall


def test_a_scene_of_roofs_alone_is_refused():
    with pytest.raises(UnfitSceneError, match="no open ground"):
        _ground_of(np.full((20, 20), 9.0), -10.0, 0.0, 10.0)


def test_waypoints_are_near_walkable_and_the_same_for_everybody(cross):
    position, _ = draw_tracks(np.random.default_rng(4), CONFIG, cross)
    waypoint, number = waypoints_of(position, cross)
    assert np.hypot(*np.moveaxis(waypoint[number] - position, -1, 0)).max() <= 3 * math.sqrt(2)
    assert cross.is_walkable[cross.pixel(waypoint)].all()
    assert np.array_equal(np.unique(number), np.arange(len(waypoint)))
    few, few_number = waypoints_of(position[:, :1], cross)
    np.testing.assert_array_equal(few[few_number], waypoint[number[:, :1]])


@pytest.mark.parametrize(
    ("azimuth_deg", "zenith_deg", "gain_db"),
    [(0, 90, 8.0), (32.5, 90, 5.0), (0, 122.5, 5.0), (32.5, 57.5, 2.0), (180, 90, -22.0)],
)
def test_a_sector_has_the_gain_of_its_table(azimuth_deg, zenith_deg, gain_db):
    """TR 38.901 Table 7.3-1: 65 degrees between half powers, 8 dBi, 30 dB front to back."""
    yaw, bearing = np.radians([20.0, 20.0])
    amplitude = sector_amplitude(
        np.radians(zenith_deg), np.radians(azimuth_deg + 20.0), yaw, bearing
    )
    assert 20 * math.log10(float(amplitude)) == pytest.approx(gain_db, abs=1e-9)


def test_the_sector_that_faces_the_device_serves_it():
    bearing = np.radians([0.0, 110.0, -130.0, 300.0])
    amplitude = sector_amplitude(np.full(4, np.pi / 2), bearing, np.zeros(4), bearing)
    off_deg = np.array([0.0, 10.0, 10.0, 60.0])
    np.testing.assert_allclose(20 * np.log10(amplitude), 8 - 12 * (off_deg / 65) ** 2)


def replayed(amplitude, delay_s, azimuth, apart_m, velocity=(0.0, 0.0), **changes):
    """One device at `apart_m` from its waypoint, one site."""
    direction = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros(len(azimuth))], -1)
    paths = TracedPaths(
        np.array(amplitude, np.complex64)[None, None],
        np.array(delay_s, np.float32)[None, None],
        direction.astype(np.float32)[None, None],
        np.ones((1, 1), bool),
    )
    position = np.array([[[[5.0, 7.0]]]]) + apart_m
    gain_db, is_los = replay(
        paths, np.array([[5.0, 7.0]]), np.zeros((1, 1, 1), int), position,
        np.array(velocity).reshape(1, 1, 1, 2), CONFIG | changes,
    )  # fmt: skip
    assert is_los.all()
    return float(gain_db.squeeze())


def test_one_path_keeps_its_power_wherever_the_device_is():
    for apart in ([0.0, 0.0], [0.3, -1.2]):
        gain = replayed([1e-4j], [3e-7], np.array([0.4]), apart, (3.0, 1.0))
        assert gain == pytest.approx(-80.0, abs=1e-3)


def test_two_opposite_waves_make_a_standing_wave():
    """Equal waves from east and west add to four times the power, or cancel a quarter wave on."""
    waves = ([1e-4, 1e-4], [0.0, 0.0], np.array([0.0, np.pi]))
    assert replayed(*waves, [0.0, 0.0]) == pytest.approx(-80 + 20 * math.log10(2), abs=1e-3)
    assert replayed(*waves, [WAVE_M / 4, 0.0]) < -120
    assert replayed(*waves, [0.0, WAVE_M / 4]) == pytest.approx(-80 + 20 * math.log10(2), abs=1e-3)
    assert replayed(*waves, [WAVE_M / 8, 0.0]) == pytest.approx(-80 + 10 * math.log10(2), abs=1e-2)


def test_a_moving_device_averages_over_the_standing_wave():
    """Two snapshots half a slot apart, an eighth of a wave either way of a maximum."""
    waves = ([1e-4, 1e-4], [0.0, 0.0], np.array([0.0, np.pi]))
    gain = replayed(*waves, [0.0, 0.0], (WAVE_M, 0.0))
    assert gain == pytest.approx(-80 + 10 * math.log10(2), abs=1e-2)


def test_tones_average_over_delays():
    """Four tones 1 MHz apart, paths 1 us / 4 apart: the cross terms run through a full circle."""
    gain = replayed([1e-4, 1e-4], [0.0, 2.5e-7], np.zeros(2), [0.0, 0.0])
    assert gain == pytest.approx(-80 + 10 * math.log10(2), abs=1e-2)
    flat = replayed([1e-4, 1e-4], [0.0, 2.5e-7], np.zeros(2), [0.0, 0.0], num_tones=1)
    assert flat == pytest.approx(-80 + 20 * math.log10(2), abs=1e-2)


def test_a_link_without_a_path_has_the_floor():
    assert replayed([0.0], [0.0], np.zeros(1), [0.0, 0.0]) == GAIN_FLOOR_DB


def test_wrong_words_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["draw"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
