"""Bursty arrivals against the two-state process that they are to be."""

from __future__ import annotations

import math

import pytest
import torch

from uara.world.arrivals import BurstConfig
from uara.world.requests import RequestConfig, RequestTable, draw_requests

HORIZON_S = 200.0
BURSTS = BurstConfig(rate_ratio=8.0, busy_s=10.0, quiet_s=30.0, shared=False)
MEAN, STD = torch.full((4,), 0.7), torch.full((4,), 0.1)


def draw(bursts: BurstConfig | None, episodes: int = 600, devices: int = 4) -> RequestTable:
    config = RequestConfig(arrivals_per_s=0.2, bursts=bursts)
    return draw_requests(torch.arange(episodes), devices, HORIZON_S, config, MEAN, STD)


def counts_in(table: RequestTable, window_s: float) -> torch.Tensor:
    """Count the arrivals of each device in windows, (B, M, windows)."""
    return table.count_by_slot(int(HORIZON_S / window_s), window_s)[0]


def test_mean_rate_stays_and_every_window_has_it() -> None:
    counts = counts_in(draw(BURSTS), 20.0)
    assert counts.mean().item() == pytest.approx(0.2 * 20, rel=0.02)
    # stationary from the start: the first windows are like the last
    assert counts[..., 0].mean().item() == pytest.approx(0.2 * 20, rel=0.06)
    assert counts[..., -1].mean().item() == pytest.approx(0.2 * 20, rel=0.06)


def test_variance_of_counts_is_that_of_the_two_state_process() -> None:
    # For rates r1, r2 with stationary share p and relaxation rate c, the variance of counts in t is
    # mean + 2 p (1 - p) (r1 - r2)^2 (t / c - (1 - exp(-c t)) / c^2).
    share, ratio = 0.25, 8.0
    quiet = 0.2 / (1 + share * (ratio - 1))
    spread = (ratio - 1) * quiet
    relax, t = 1 / 10 + 1 / 30, 20.0
    extra = 2 * share * (1 - share) * spread**2
    extra *= t / relax - (1 - math.exp(-relax * t)) / relax**2
    counts = counts_in(draw(BURSTS), t).double().flatten()
    assert counts.var().item() == pytest.approx(0.2 * t + extra, rel=0.05)
    even = counts_in(draw(None), t).double().flatten()
    assert even.var().item() == pytest.approx(0.2 * t, rel=0.05)


def test_devices_are_busy_together_only_where_bursts_are_shared() -> None:
    def correlation(shared: bool) -> float:
        counts = counts_in(draw(BURSTS.model_copy(update={"shared": shared})), 10.0)
        pair = counts[:, :2].permute(1, 0, 2).flatten(1)
        return torch.corrcoef(pair)[0, 1].item()

    assert correlation(True) > 0.3
    assert abs(correlation(False)) < 0.05


def test_arrivals_rise_and_the_table_is_long_enough() -> None:
    arrival = draw(BURSTS).arrival_s
    finite = torch.isfinite(arrival)
    both = finite[..., 1:]
    assert (arrival[..., 1:][both] > arrival[..., :-1][both]).all()
    assert not finite[..., -1].any()


def test_equal_rates_are_no_bursts() -> None:
    same = draw(BURSTS.model_copy(update={"rate_ratio": 1.0}), 50).arrival_s
    torch.testing.assert_close(same, draw(None, 50).arrival_s[..., : same.shape[2]])
