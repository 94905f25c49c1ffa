"""Drops: places, fading, lengths, and that they are common random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.tasks import draw_tasks, path_loss_db


def test_users_lie_evenly_on_the_disc() -> None:
    config = HetEdgeConfig(users=20_000, fading="none")
    loss_db = -10 * np.log10(draw_tasks(config, 1).gain[0])
    distance_m = 1e3 * 10 ** ((loss_db - 128.1) / 37.6)
    assert distance_m.min() > 10
    assert distance_m.max() < 400
    # Even on a disc: half of the area is within 400 / sqrt(2) m.
    assert (distance_m < 400 / np.sqrt(2)).mean() == pytest.approx(0.5, abs=0.01)


def test_fading_keeps_the_mean_gain() -> None:
    plain = draw_tasks(HetEdgeConfig(users=20_000, fading="none"), 1).gain
    faded = draw_tasks(HetEdgeConfig(users=20_000), 1).gain
    assert (faded / plain).mean() == pytest.approx(1.0, abs=0.03)
    assert (faded / plain < 0.1).mean() == pytest.approx(1 - np.exp(-0.1), abs=0.01)


def test_other_bands_and_numbers_meet_the_same_users() -> None:
    many, few = (draw_tasks(HetEdgeConfig(users=n), 2) for n in (100, 90))
    assert np.array_equal(many.gain[:, :90], few.gain)
    assert np.array_equal(many.input_tokens[:, :90], few.input_tokens)
    assert not np.array_equal(many.gain[0], many.gain[1])


def test_lengths_cover_their_range_evenly() -> None:
    tokens = draw_tasks(HetEdgeConfig(users=50_000, input_tokens_max=4), 1).input_tokens[0]
    share = np.bincount(tokens.astype(int), minlength=5)[1:] / 50_000
    assert share == pytest.approx([0.25] * 4, abs=0.01)


def test_path_losses_of_the_readings() -> None:
    at = np.array([100.0, 1000.0])
    macro = path_loss_db(HetEdgeConfig(), at)
    assert macro == pytest.approx([128.1 - 37.6, 128.1])
    free = path_loss_db(HetEdgeConfig(path_loss="free_space"), at)
    # 20 log10(4 pi d / wavelength) at 2 GHz
    slant_m = np.hypot(at, 8.5)
    assert free == pytest.approx(20 * np.log10(4 * np.pi * slant_m * 2e9 / 299_792_458), abs=0.01)
    umi = path_loss_db(HetEdgeConfig(path_loss="umi_nlos"), at)
    assert umi == pytest.approx(35.3 * np.log10(slant_m) + 22.4 + 21.3 * np.log10(2.0), abs=1e-9)


def test_density_adds_up_to_the_noise_of_the_whole_band() -> None:
    config = HetEdgeConfig(users=3)
    tasks = draw_tasks(config, 1)
    snr = config.power_w * tasks.gain / 10 ** ((-106 - 30) / 10)
    assert tasks.efficiency(config) == pytest.approx(np.log2(1 + snr))
    assert tasks.snr_hz(config) / config.bandwidth_hz == pytest.approx(snr)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_tokens_min": 600}, "input_tokens_max is 512"),
        ({"distance_min_m": 400.0}, "widen the cell"),
        ({"memory_bytes": 2e9}, "needs 2.21e"),
    ],
)
def test_options_that_contradict_each_other_are_told(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HetEdgeConfig(**given)
