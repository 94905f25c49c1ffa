"""Maps of a traced city change with what they show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.image import imread

from uara.errors import UserError
from uara.figures.city_map import draw_city_map
from uara.radio.backends import RadioMap
from uara.radio.bank import BankConfig, ChannelBank


@pytest.fixture
def bank():
    config = BankConfig(
        num_devices=2, num_servers=2, num_slots=6, train=0, tuning=0, validation=0, evaluation=1,
        backend="rt",
    )  # fmt: skip
    rng = np.random.default_rng(1)
    return ChannelBank(
        gain_db=rng.uniform(-140, -60, (1, 6, 2, 2)).astype(np.float16),
        position_m=rng.uniform(-30, 30, (1, 6, 2, 2)).astype(np.float32),
        velocity_m_s=np.zeros((1, 6, 2, 2), np.float32),
        is_los=rng.random((1, 6, 2, 2)) < 0.5,
        site_position_m=np.array([[-20.0, 0.0], [20.0, 0.0]], np.float32),
        config=config,
        sionna_version="2.2.0",
        build_s=1.0,
    )


def test_a_map_shows_gains_buildings_and_tracks(bank, tmp_path):
    height = np.zeros((80, 80))
    height[10:30, 10:30] = 15.0
    gain = np.linspace(-130, -70, 400).reshape(1, 20, 20).repeat(2, axis=0)
    city = RadioMap(gain, height, np.array([[-20.0, 0, 30], [20, 0, 30]]), 40.0)
    pictures = {}
    for name, shown in {
        "first": city,
        "again": city,
        "stronger": dataclasses.replace(city, gain_db=gain + 10),
        "flat": dataclasses.replace(city, height_m=np.zeros((80, 80))),
    }.items():
        draw_city_map(shown, bank, 0, tmp_path / f"{name}.png")
        pictures[name] = imread(tmp_path / f"{name}.png")
    assert len(list(tmp_path.iterdir())) == 4
    np.testing.assert_array_equal(pictures["first"], pictures["again"])
    for other in ("stronger", "flat"):
        assert (pictures["first"] != pictures[other]).mean() > 0.01
    with pytest.raises(UserError, match="world is 1"):
        draw_city_map(city, bank, 1, tmp_path / "none.png")
