"""What the TensorFlow builder does without TensorFlow: the line of sight along a track."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uara.radio.tensorflow_umi import draw_los_quantile, draw_penetration_db, main


def test_line_of_sight_decisions_are_uniform_and_hang_together_over_50_m():
    """Quantiles 50 m apart have a Gaussian correlation of exp(-1)."""
    num_devices, step_m = 4000, 25.0
    position = np.zeros((3, num_devices, 2))
    position[:, :, 0] = step_m * np.arange(3)[:, None]
    quantile = draw_los_quantile(np.random.default_rng(1), position, 1)[:, 0].astype(float)
    for t in range(3):
        assert quantile[:, t].mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * num_devices))
        assert (quantile[:, t] < 0.1).mean() == pytest.approx(0.1, abs=4 * 0.3 / num_devices**0.5)
    # The correlation of quantiles of a Gaussian pair is 6 / pi asin(rho / 2).
    for lag in (1, 2):
        rho = math.exp(-lag * step_m / 50)
        expected = 6 / math.pi * math.asin(rho / 2)
        got = np.corrcoef(quantile[:, 0], quantile[:, lag])[0, 1]
        assert got == pytest.approx(expected, abs=4 / num_devices**0.5)


def test_servers_and_devices_decide_apart_and_a_still_device_keeps_its_state():
    quantile = draw_los_quantile(np.random.default_rng(2), np.zeros((5, 300, 2)), 2)
    assert quantile.shape == (300, 2, 5)
    np.testing.assert_allclose(quantile, np.broadcast_to(quantile[..., :1], quantile.shape))
    assert abs(np.corrcoef(quantile[:, 0, 0], quantile[:, 1, 0])[0, 1]) < 4 / math.sqrt(300)


def test_a_wall_below_6_ghz_takes_20_db_and_half_a_decibel_per_metre():
    """TR 38.901 Table 7.4.3-3: 20 dB, and up to 25 m indoors, evenly."""
    is_indoor = np.arange(4000) % 2 == 0
    loss_db = draw_penetration_db(np.random.default_rng(3), 3.5e9, is_indoor, 2)
    assert loss_db.shape == (4000, 2, 1)
    assert not loss_db[~is_indoor].any()
    indoor = loss_db[is_indoor]
    assert 20.0 <= indoor.min() < 20.1
    assert 32.4 < indoor.max() <= 32.5
    assert indoor.mean() == pytest.approx(26.25, abs=0.3)
    assert (indoor[:, 0] != indoor[:, 1]).all()


def test_a_low_loss_wall_at_28_ghz_is_that_of_glass_and_concrete():
    """Table 7.4.3-1: glass 7.6, concrete 117 dB; the lesser of two ways has a mean of 25 / 3 m."""
    loss_db = draw_penetration_db(np.random.default_rng(4), 28e9, np.ones(20_000, bool), 3)
    wall_db = 5 + 7.6 - 10 * math.log10(0.3)
    assert loss_db.mean() == pytest.approx(wall_db + 0.5 * 25 / 3, abs=0.2)
    np.testing.assert_array_equal(loss_db[:, 0], loss_db[:, 2])
    way_db = 0.5 * 25 / math.sqrt(18)  # standard deviation of the lesser of two
    assert loss_db[:, 0].std() == pytest.approx(math.hypot(4.4, way_db), rel=0.05)


def test_wrong_words_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["map", "folder"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
