"""The link model against link budgets reckoned in decibels, and its shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uara.radio.link import (
    LinkConfig,
    dbm_to_w,
    noise_density_w_per_hz,
    rate_bps,
    spectral_efficiency,
)
from uara.radio.mcs import DIRECTIONS, Direction

LINK = LinkConfig()
MCS = LinkConfig(adaptation="mcs")
NOISE = LINK.uplink_noise_w_per_hz


def rate(
    gain: float,
    power_w: float,
    bandwidth_hz: float,
    link: LinkConfig = LINK,
    direction: Direction | None = None,
) -> float:
    gain_, power_, hertz_ = (
        torch.tensor(value, dtype=torch.float64) for value in (gain, power_w, bandwidth_hz)
    )
    return float(rate_bps(gain_, power_, hertz_, NOISE, link, direction))


def test_thermal_noise_of_one_megahertz_with_its_noise_figure() -> None:
    # -174 dBm/Hz + 10 log10(1e6) = -114 dBm; a receiver of 5 dB raises it to -109 dBm.
    assert noise_density_w_per_hz(0.0) * 1e6 == pytest.approx(dbm_to_w(-114.0), rel=1e-9, abs=0)
    assert LINK.uplink_noise_w_per_hz * 1e6 == pytest.approx(dbm_to_w(-109.0), rel=1e-9, abs=0)
    assert LINK.downlink_noise_w_per_hz * 1e6 == pytest.approx(dbm_to_w(-105.0), rel=1e-9, abs=0)


@pytest.mark.parametrize(("dbm", "watt"), [(0.0, 1e-3), (30.0, 1.0), (23.0, 0.199526)])
def test_dbm_is_decibels_over_a_milliwatt(dbm: float, watt: float) -> None:
    assert dbm_to_w(dbm) == pytest.approx(watt, rel=1e-5)


def test_shannon_with_a_gap_by_hand_in_decibels() -> None:
    # 23 dBm sent, 125 dB lost, noise of 1 MHz at -109 dBm: an SNR of 7 dB, 4 dB behind the gap.
    snr_behind_gap = 10 ** (4 / 10)
    by_hand = 1e6 * math.log2(1 + snr_behind_gap)
    assert rate(10 ** (-125 / 10), dbm_to_w(23.0), 1e6) == pytest.approx(by_hand, rel=1e-9)


def test_strong_link_runs_at_the_cap() -> None:
    assert rate(1e-7, 0.2, 1e6) == pytest.approx(5.55e6)


def test_cap_is_reached_where_shannon_with_the_gap_reaches_it() -> None:
    edge = (2**5.55 - 1) * 10**0.3
    snr = torch.tensor([0.999 * edge, 1.001 * edge], dtype=torch.float64)
    below, above = spectral_efficiency(snr, LINK)
    assert 5.54 < below < 5.55
    assert above == 5.55


def test_no_bandwidth_and_no_power_carry_nothing() -> None:
    assert rate(1e-10, 0.2, 0.0) == 0
    assert rate(1e-10, 0.0, 1e6) == 0


GAIN_DB = st.floats(-150, -70)
POWER_W = st.floats(1e-4, 0.2)
HERTZ = st.floats(1e3, 1e7)


@given(GAIN_DB, POWER_W, HERTZ, st.floats(1.01, 100))
def test_rate_never_falls_with_bandwidth_or_power(
    gain_db: float, power_w: float, bandwidth_hz: float, factor: float
) -> None:
    gain = 10 ** (gain_db / 10)
    here = rate(gain, power_w, bandwidth_hz) * (1 - 1e-12)
    assert rate(gain, power_w, factor * bandwidth_hz) >= here
    assert rate(gain, factor * power_w, bandwidth_hz) >= here


@given(GAIN_DB, POWER_W, POWER_W, HERTZ, HERTZ)
def test_rate_is_concave_in_bandwidth_and_in_power(
    gain_db: float, power_w: float, other_w: float, bandwidth_hz: float, other_hz: float
) -> None:
    gain = 10 ** (gain_db / 10)
    middle = rate(gain, power_w, (bandwidth_hz + other_hz) / 2)
    chord = (rate(gain, power_w, bandwidth_hz) + rate(gain, power_w, other_hz)) / 2
    assert middle >= chord * (1 - 1e-9)
    middle = rate(gain, (power_w + other_w) / 2, bandwidth_hz)
    chord = (rate(gain, power_w, bandwidth_hz) + rate(gain, other_w, bandwidth_hz)) / 2
    assert middle >= chord * (1 - 1e-9)


@given(GAIN_DB, POWER_W, HERTZ, st.floats(1, 100), st.sampled_from(DIRECTIONS))
def test_with_tables_power_never_slows(
    gain_db: float, power_w: float, bandwidth_hz: float, factor: float, direction: Direction
) -> None:
    gain = 10 ** (gain_db / 10)
    here = rate(gain, power_w, bandwidth_hz, MCS, direction)
    assert rate(gain, factor * power_w, bandwidth_hz, MCS, direction) >= here


@given(GAIN_DB, POWER_W, HERTZ, st.floats(1, 100), st.sampled_from(DIRECTIONS))
def test_with_tables_bandwidth_at_one_density_pays_in_proportion(
    gain_db: float, power_w: float, bandwidth_hz: float, factor: float, direction: Direction
) -> None:
    gain = 10 ** (gain_db / 10) * 1.0001  # off the steps of the table
    here = rate(gain, power_w, bandwidth_hz, MCS, direction)
    wider = rate(gain, factor * power_w, factor * bandwidth_hz, MCS, direction)
    assert wider == pytest.approx(factor * here, rel=0.01)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_with_tables_bandwidth_at_one_power_costs_little_above_the_lowest_scheme(
    direction: Direction,
) -> None:
    # A rate at one power goes as efficiency over SINR, and the SINR as one over bandwidth.
    sinr = 10 ** (torch.arange(-2.795, 40, 0.01, dtype=torch.float64) / 10)
    pace = spectral_efficiency(sinr, MCS, direction) / sinr
    best_narrower = pace.flip(0).cummax(0).values.flip(0)
    assert 0.8 < float((pace / best_narrower).min()) < 1
    twice_as_wide, once = pace[:-301], pace[301:]
    assert (twice_as_wide > 0.98 * once).all()


def test_with_tables_a_band_too_wide_for_the_power_carries_nothing() -> None:
    # 23 dBm sent, 125 dB lost: 7 dB over the noise of 1 MHz, -4 dB over that of 12.6 MHz.
    assert rate(10 ** (-125 / 10), dbm_to_w(23.0), 1e6, MCS, "uplink") > 1e6
    assert rate(10 ** (-125 / 10), dbm_to_w(23.0), 12.6e6, MCS, "uplink") == 0


def test_interference_is_noise() -> None:
    gain, power, hertz = (torch.tensor(x, dtype=torch.float64) for x in (1e-11, 0.2, 1e6))
    noises = torch.tensor([1, 1000], dtype=torch.float64) * NOISE
    for link in (LINK, MCS):
        quiet, loud = rate_bps(gain, power, hertz, noises, link, "uplink")
        assert quiet == rate_bps(gain, power, hertz, NOISE, link, "uplink")
        farther = rate_bps(gain / 1000, power, hertz, NOISE, link, "uplink")
        assert float(loud) == pytest.approx(float(farther))
        assert loud < quiet


def test_directions_have_tables_of_their_own() -> None:
    snr = 10 ** (torch.arange(-5, 25, 0.5) / 10)
    up, down = (spectral_efficiency(snr, MCS, direction) for direction in DIRECTIONS)
    assert (up != down).any()
    assert torch.equal(*(spectral_efficiency(snr, LINK, direction) for direction in DIRECTIONS))


@pytest.mark.parametrize("change", [{"adaptation": "mcs"}, {"interference": "reuse1"}])
def test_choices_are_dumped_unless_they_change_nothing(change: dict[str, Any]) -> None:
    # The hashes of tasks are of dumps, and those stored before there was a choice must stay.
    old = {"uplink_noise_figure_db", "downlink_noise_figure_db", "snr_gap_db"}
    assert set(LINK.model_dump()) == old | {"spectral_efficiency_max"}
    chosen = LinkConfig(**change)
    assert LINK.model_dump() | change == chosen.model_dump()
    for link in (LINK, chosen):
        assert LinkConfig.model_validate_json(link.model_dump_json()) == link
