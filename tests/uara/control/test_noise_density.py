"""Rates over bandwidth at a noise density, and their inversions, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from uara.control.noise_density import RateCurve, excess_root, log_slope

SNR_HZ = torch.logspace(2, 9, 50, dtype=torch.float64)[:, None]
BANDWIDTH_HZ = torch.logspace(3, 6.5, 40, dtype=torch.float64)


def curve(cap: float = 5.55) -> RateCurve:
    snr_hz = SNR_HZ.expand(-1, len(BANDWIDTH_HZ))
    return RateCurve(snr_hz, torch.full_like(snr_hz, cap))


def test_root_is_the_lower_branch_of_lambert() -> None:
    excess = np.logspace(-2, np.log10(700), 400)
    expected = -1 - lambertw(-np.exp(-1 - excess), -1).real
    found = excess_root(torch.from_numpy(excess)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_root_keeps_its_digits_where_the_branches_meet() -> None:
    # v - ln(1 + v) = v^2 / 2 - v^3 / 3 + ...: v = r + r^2 / 3 + r^3 / 36 + ..., r = sqrt(2u).
    r = np.logspace(-9, -4, 60)
    found = excess_root(torch.from_numpy(r * r / 2)).numpy()
    np.testing.assert_allclose(found, r + r**2 / 3 + r**3 / 36, rtol=1e-11)


def test_root_of_large_arguments_is_the_argument_and_its_logarithm() -> None:
    found = excess_root(torch.tensor([1e6], dtype=torch.float64)).item()
    assert found - math.log1p(found) == pytest.approx(1e6, rel=1e-14)


def test_rate_is_shannons_up_to_the_cap() -> None:
    rate = curve().rate_bps(BANDWIDTH_HZ)
    expected = BANDWIDTH_HZ * np.minimum(5.55, np.log2(1 + SNR_HZ / BANDWIDTH_HZ))
    torch.testing.assert_close(rate, expected)


def test_bandwidth_inverts_the_rate() -> None:
    given = curve()
    found = given.bandwidth_hz(given.rate_bps(BANDWIDTH_HZ))
    torch.testing.assert_close(found, BANDWIDTH_HZ.expand_as(found), rtol=1e-9, atol=0)
    for snr_hz, rate_bps in ((1e4, 1.2e4), (1e6, 3e5), (1e7, 2e6)):

        def miss(hertz: float, snr_hz: float = snr_hz, rate_bps: float = rate_bps) -> float:
            return hertz * min(5.55, math.log2(1 + snr_hz / hertz)) - rate_bps

        one = RateCurve(
            torch.tensor(snr_hz, dtype=torch.float64), torch.tensor(5.55, dtype=torch.float64)
        )
        expected = brentq(miss, 1.0, 1e9, xtol=1e-9)
        assert one.bandwidth_hz(torch.tensor(rate_bps).double()).item() == pytest.approx(expected)


def test_slope_is_the_derivative() -> None:
    given, step = curve(), 1e-5
    rise = given.rate_bps(BANDWIDTH_HZ * (1 + step)) - given.rate_bps(BANDWIDTH_HZ * (1 - step))
    far = (BANDWIDTH_HZ / given.knee_hz - 1).abs() > 10 * step
    expected = rise / (2 * step * BANDWIDTH_HZ)
    slope = given.slope(BANDWIDTH_HZ)
    # Weak links gain next to nothing from bandwidth; the difference quotient has no digits there.
    sure = far & (expected > 1e-3)
    torch.testing.assert_close(slope[sure], expected[sure], rtol=1e-5, atol=0)


def test_small_slopes_keep_their_digits() -> None:
    x = torch.logspace(-8, -5, 20, dtype=torch.float64)
    torch.testing.assert_close(log_slope(x), x**2 / 2 - 2 * x**3 / 3, rtol=1e-9, atol=0)


def test_links_without_a_noise_density_are_straight() -> None:
    straight = RateCurve.straight(torch.tensor([2.0, 4.0], dtype=torch.float64))
    assert straight.bandwidth_hz(torch.tensor([1e6, 1e6]).double()).tolist() == [5e5, 2.5e5]
    assert straight.slope(torch.tensor([1e5, 1e9]).double()).tolist() == [2.0, 4.0]
