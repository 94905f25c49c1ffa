"""Maps are images of the asked size, and they change with what they show."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from uara.errors import UserError
from uara.figures.network_map import draw_bank_preview, draw_network
from uara.radio.bank import BankConfig, ChannelBank

NETWORK = {
    "site_position_m": np.array([[-150.0, 0.0], [150.0, 0.0]]),
    "device_position_m": np.array([[-100.0, 40.0], [0.0, -60.0], [90.0, 10.0]]),
    "server": np.array([0, 0, 1]),
    "latency_s": np.array([3.0, 9.0, np.nan]),
    "server_load": np.array([0.8, 0.2]),
}


@pytest.fixture(scope="module")
def picture():
    return draw_network(None, **NETWORK, title="t = 0 s")


@pytest.fixture
def bank():
    rng = np.random.default_rng(1)
    slots = (2, 12, 3)
    config = BankConfig(
        num_devices=3, num_servers=2, num_slots=12, train=1, tuning=0, validation=0, evaluation=1
    )
    return ChannelBank(
        gain_db=rng.uniform(-140, -60, (*slots, 2)).astype(np.float16),
        position_m=rng.uniform(-150, 150, (*slots, 2)).astype(np.float32),
        velocity_m_s=np.zeros((*slots, 2), np.float32),
        is_los=rng.random((*slots, 2)) < 0.5,
        site_position_m=np.array([[-150, 0], [150, 0]], np.float32),
        config=config,
        sionna_version="2.2.0",
        build_s=1.0,
    )


def test_a_map_is_a_colour_image_of_the_documented_size(picture):
    assert picture.shape == (560, 640, 3)
    assert picture.dtype == np.uint8
    assert (picture == 255).all(axis=-1).mean() > 0.3


def test_equal_networks_give_equal_maps(picture):
    np.testing.assert_array_equal(draw_network(None, **NETWORK, title="t = 0 s"), picture)


@pytest.mark.parametrize(
    "change",
    [
        {"server": np.array([0, 1, 1])},
        {"server": np.array([0, -1, 1])},
        {"server_load": np.array([0.3, 0.2])},
        {"latency_s": np.array([9.0, 3.0, np.nan])},
    ],
)
def test_what_changes_in_the_network_changes_the_map(picture, change):
    other = draw_network(None, **(NETWORK | change), title="t = 0 s")
    assert (other != picture).any()


def test_a_network_without_servers_or_latencies_can_be_drawn():
    nothing = {"server": np.full(3, -1), "latency_s": np.full(3, np.nan)}
    assert draw_network(None, **(NETWORK | nothing)).shape == (560, 640, 3)


def test_a_map_goes_into_given_axes():
    figure = Figure(figsize=(4, 3), dpi=50)
    axes = figure.add_subplot()
    assert draw_network(axes, **NETWORK, title="inside").shape == (150, 200, 3)
    assert axes.get_title() == "inside"


def test_a_preview_is_written_as_png_and_differs_between_worlds(bank, tmp_path):
    backend = matplotlib.get_backend()
    for world in (0, 1):
        draw_bank_preview(bank, world, tmp_path / f"{world}.png")
    first, second = imread(tmp_path / "0.png"), imread(tmp_path / "1.png")
    assert first.shape[0] > 500
    assert first.shape[1] > first.shape[0]
    assert first.shape == second.shape
    assert (first != second).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "1.png"]
    assert matplotlib.get_backend() == backend


def test_a_world_that_the_bank_lacks_is_refused(bank, tmp_path):
    with pytest.raises(UserError, match="worlds 0 to 1"):
        draw_bank_preview(bank, 2, tmp_path / "no.png")
