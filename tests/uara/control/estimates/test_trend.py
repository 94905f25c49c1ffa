"""Old gains are carried on by their trend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.control.estimates.trend import GainTrend, GainTrendConfig
from uara.network import NetworkState


def shown(state: NetworkState, time_s: float, gain_db: float) -> NetworkState:
    gain = torch.full_like(state.gain, 10 ** (gain_db / 10))
    return state.with_(gain=gain, time_s=torch.full_like(state.time_s, time_s))


@pytest.mark.parametrize("level_gain", [1.0, 0.5])
def test_ramp_is_followed_to_the_present(
    make_state: Callable[..., NetworkState], level_gain: float
) -> None:
    state = make_state(2, 3, 2)
    trend = GainTrend(GainTrendConfig(level_gain=level_gain, ahead_s=1.5))
    for slot in range(80):
        time_s = 0.5 * slot
        # What is shown is 1.5 s old; the gain falls by 2 dB per second.
        known = shown(state, time_s, -90 - 2 * (time_s - 1.5))
        trend.begin(known, torch.zeros(2, dtype=torch.bool))
    now_db = 10 * trend.correct(known).gain.log10()
    torch.testing.assert_close(now_db, torch.full_like(now_db, -90 - 2 * time_s), atol=0.05, rtol=0)


def test_change_looked_ahead_is_bounded_and_forgotten_networks_have_none(
    make_state: Callable[..., NetworkState],
) -> None:
    state = make_state(2, 3, 2)
    trend = GainTrend(GainTrendConfig(slope_gain=1.0, ahead_s=10, largest_change_db=6))
    trend.begin(shown(state, 0.0, -90), torch.zeros(2, dtype=torch.bool))
    known = shown(state, 0.5, -70)
    trend.begin(known, torch.tensor([False, True]))
    seen_db = 10 * trend.correct(known).gain.log10()
    assert seen_db[0].mean().item() == pytest.approx(-64, abs=1e-3)
    assert seen_db[1].mean().item() == pytest.approx(-70, abs=1e-3)
