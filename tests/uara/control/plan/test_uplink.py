"""Closed forms of the uplink against general optimisers, and what makes them optimal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog, minimize

from uara.control.plan import uplink
from uara.control.plan.uplink import Array

SEEDS = st.integers(0, 10**6)


def instance(seed: int) -> tuple[Array, Array, Array, float]:
    """Draw payloads, efficiencies, signal over noise density, and a band."""
    rng = np.random.default_rng(seed)
    tasks = int(rng.integers(2, 9))
    bits = 10 ** rng.uniform(2, 6, tasks)
    efficiency = rng.uniform(0.05, 12, tasks)
    band_hz = float(10 ** rng.uniform(5, 8))
    snr_hz = band_hz * 10 ** rng.uniform(-2, 3, tasks)
    return bits, efficiency, snr_hz, band_hz


@given(SEEDS)
@settings(max_examples=200)
def test_equal_finish_is_the_linear_programmes_optimum(seed: int) -> None:
    bits, efficiency, _, band_hz = instance(seed)
    split = uplink.equal_finish(bits, efficiency, band_hz)
    assert split.sum() == pytest.approx(band_hz, rel=1e-9)
    finish_s = uplink.upload_s(bits, split, efficiency=efficiency)
    assert finish_s == pytest.approx(finish_s.max(), rel=1e-12)
    # Shares y of the band and a speed u: most u with w u <= y and sum y <= 1; the end is w / u.
    asked = bits / efficiency
    scale = asked.max()
    rows = np.hstack([-np.eye(len(bits)), (asked / scale)[:, None]])
    rows = np.vstack([rows, [*np.ones(len(bits)), 0.0]])
    best = linprog([*np.zeros(len(bits)), -1.0], A_ub=rows, b_ub=[*np.zeros(len(bits)), 1.0])
    assert finish_s.max() == pytest.approx(scale / band_hz / -best.fun, rel=1e-6)


@given(SEEDS)
@settings(max_examples=200)
def test_least_sum_is_the_optimum_of_a_descent(seed: int) -> None:
    bits, efficiency, _, band_hz = instance(seed)
    split = uplink.least_sum(bits, efficiency, band_hz)
    assert split.sum() == pytest.approx(band_hz, rel=1e-9)
    asked = bits / efficiency / (bits / efficiency).sum()

    def total(free: Array) -> tuple[float, Array]:
        share = np.exp(free - free.max())
        share /= share.sum()
        cost = asked / share
        return cost.sum(), -cost + share * cost.sum()

    found = minimize(total, np.zeros(len(bits)), jac=True, method="BFGS", options={"gtol": 1e-10})
    scale = (bits / efficiency).sum() / band_hz
    own = uplink.upload_s(bits, split, efficiency=efficiency).sum()
    assert own == pytest.approx(found.fun * scale, rel=1e-6)
    assert own <= found.fun * scale * (1 + 1e-12)


@given(SEEDS)
@settings(max_examples=200)
def test_equal_finish_at_density_is_what_root_finding_gives(seed: int) -> None:
    bits, _, snr_hz, band_hz = instance(seed)
    split = uplink.equal_finish_at_density(bits, snr_hz, band_hz)
    assert split.sum() == pytest.approx(band_hz, rel=1e-9)
    finish_s = uplink.upload_s(bits, split, snr_hz=snr_hz)
    assert finish_s == pytest.approx(finish_s.max(), rel=1e-6)

    def width(number: int, end_s: float) -> float:
        """Find the log of the bandwidth at which a task ends in time."""

        def missing(log_hz: float) -> float:
            ratio = snr_hz[number] / np.exp(log_hz)
            return float(end_s * np.exp(log_hz) * np.log1p(ratio) / np.log(2) - bits[number])

        return float(brentq(missing, -40.0, 60.0, xtol=1e-13))

    def excess(log_s: float) -> float:
        return float(sum(np.exp(width(k, np.exp(log_s))) for k in range(len(bits))) / band_hz - 1)

    own = np.log(finish_s.max())
    step = 1e-6
    # The band that the same end needs changes sign of its excess within a millionth around it.
    assert excess(own + step) < 0 < excess(own - step)


def test_no_split_ends_the_last_upload_sooner_at_density() -> None:
    bits, _, snr_hz, band_hz = instance(5)
    split = uplink.equal_finish_at_density(bits, snr_hz, band_hz)
    best = uplink.upload_s(bits, split, snr_hz=snr_hz).max()
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = split * np.exp(rng.normal(0, 0.1, len(bits)))
        other *= band_hz / other.sum()
        assert uplink.upload_s(bits, other, snr_hz=snr_hz).max() >= best * (1 - 1e-12)


def test_no_bandwidth_is_enough_beyond_the_power_limit() -> None:
    bits, snr_hz = np.array([1e6]), np.array([1e6])
    limit_s = bits * np.log(2) / snr_hz
    assert np.isinf(uplink.bandwidth_for_finish(bits, snr_hz, limit_s)).all()
    wide = uplink.bandwidth_for_finish(bits, snr_hz, 1.001 * limit_s)
    assert np.isfinite(wide).all()
    assert uplink.upload_s(bits, wide, snr_hz=snr_hz) == pytest.approx(1.001 * limit_s, rel=1e-9)


def test_drops_are_split_apart() -> None:
    bits, efficiency, snr_hz, band_hz = instance(3)
    two = np.stack([bits, bits[::-1]])
    both = uplink.equal_finish_at_density(two, np.stack([snr_hz, snr_hz]), band_hz)
    assert both[0] == pytest.approx(uplink.equal_finish_at_density(bits, snr_hz, band_hz))
    share = uplink.uniform(two, band_hz)
    assert share.shape == two.shape
    assert share.sum(-1) == pytest.approx([band_hz] * 2)
    assert efficiency.shape == bits.shape
