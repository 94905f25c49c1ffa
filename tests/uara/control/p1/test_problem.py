"""I of eq 8 and its parts against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from uara.control.p1.drop import line_of_sight_probability, path_loss_db
from uara.control.p1.problem import (
    Problem,
    Shares,
    decided_objective,
    excess,
    mean_latency_s,
    objective,
    parts,
)
from uara.control.p1.readings import PRINTED, P1Config


def t(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def two_devices(**readings: Any) -> Problem:
    """Two devices on one server: SNR 3 over half of 1 MHz, so 1 Mbit/s each."""
    config = P1Config(bandwidth_hz=1e6, **readings)
    noise = torch.full((1, 2, 1), 1e-9, dtype=torch.float64)
    return Problem(
        readings=config,
        device_time_s=t(0.01, 0.03),
        work_s=t(0.004, 0.016).unsqueeze(-1),
        payload_bits=t(20_000, 20_000),
        gain=torch.full((1, 2, 1), 3 * 1e-9 * 0.5e6 / 0.1, dtype=torch.float64),
        power_w=t(0.1, 0.1),
        band_hz=t(1e6),
        noise_w_per_hz=noise,
        queue_s=t(0.2),
        compute_energy_j=t(3.0, 6.0),
        battery=t(600.0, 600.0),
        capacity_flop_per_s=t(1e13),
    )


SERVER = torch.zeros(1, 2, dtype=torch.long)
HALVES = Shares(t(0.5, 0.5), t(0.5, 0.5))


def test_two_devices_by_hand() -> None:
    found = parts(two_devices(), SERVER, HALVES)
    # 20 kbit at 0.5 MHz x log2(1 + 3) = 1 Mbit/s.
    torch.testing.assert_close(found.uplink_s, t(0.02, 0.02))
    torch.testing.assert_close(found.sync_s, t(0.01, 0.0))
    torch.testing.assert_close(found.server_s, t(0.008, 0.032))
    torch.testing.assert_close(found.queue_s, t(0.2, 0.2))
    # 2.6 x 0.1 W x 20 ms, at 20 s per share of 600 J.
    torch.testing.assert_close(found.radio_energy_j, t(0.0052, 0.0052))
    torch.testing.assert_close(found.compute_energy_s, t(0.1, 0.2))
    total = (0.01 + 0.03) + 0.01 + (0.008 + 0.032) + 2 * 0.2 + (0.1 + 0.2) + 2 * 0.0052 * 20 / 600
    torch.testing.assert_close(
        objective(two_devices(), SERVER, HALVES), torch.tensor([total]).double()
    )
    torch.testing.assert_close(
        decided_objective(two_devices(), SERVER, HALVES), torch.tensor([total - 0.34]).double()
    )
    latency = (max(0.01, 0.02) + max(0.03, 0.02) + 0.04 + 0.4) / 2
    torch.testing.assert_close(
        mean_latency_s(two_devices(), SERVER, HALVES), torch.tensor([latency]).double()
    )


@pytest.mark.parametrize(
    ("sync", "expected"),
    [
        ("penalty_s", (1e-2 * 1e-4, 1e-2 * 1e-4)),
        ("penalty_ms", (1e-2 * 100 * 1e-3, 1e-2 * 100 * 1e-3)),
        ("sequential", (0.02, 0.02)),
        ("none", (0.0, 0.0)),
    ],
)
def test_each_reading_of_synchronisation(sync: str, expected: tuple[float, float]) -> None:
    found = parts(two_devices(sync=sync), SERVER, HALVES).sync_s
    torch.testing.assert_close(found, t(*expected))


@pytest.mark.parametrize(
    ("form", "joules"),
    [("printed", 2.6 * 0.5e6 * 0.1), ("predecessor", 0.5 * 0.1 * 0.1), ("repaired", 0.0052)],
)
def test_each_reading_of_radio_energy(form: str, joules: float) -> None:
    found = parts(two_devices(radio_energy=form), SERVER, HALVES).radio_energy_j
    torch.testing.assert_close(found, t(joules, joules))


@pytest.mark.parametrize(("noise", "snr"), [("printed", 3 * 0.5e6), ("band", 1.5), ("share", 3.0)])
def test_each_reading_of_noise(noise: str, snr: float) -> None:
    found = parts(two_devices(noise=noise), SERVER, HALVES).uplink_s
    expected = 20_000 / (0.5e6 * math.log2(1 + snr))
    torch.testing.assert_close(found, t(expected, expected))


@pytest.mark.parametrize(
    ("latency", "waits"), [("printed", 0.04), ("overlap", 0.05), ("sequential", 0.08)]
)
def test_each_reading_of_latency(latency: str, waits: float) -> None:
    found = mean_latency_s(two_devices(latency=latency), SERVER, HALVES)
    torch.testing.assert_close(found, torch.tensor([(waits + 0.04 + 0.4) / 2]).double())


def test_a_shared_band_is_disturbed_by_devices_of_other_servers() -> None:
    quiet = two_devices(interference="reuse1")
    problem = replace(
        quiet,
        gain=torch.tensor([[[2e-6, 1e-7], [3e-7, 4e-6]]], dtype=torch.float64),
        work_s=quiet.work_s.expand(-1, -1, 2),
        band_hz=t(1e6, 1e6),
        queue_s=t(0.0, 0.0),
    )
    apart = torch.tensor([[0, 1]])
    found = parts(problem, apart, Shares(t(0.5, 0.5), t(1, 1))).uplink_s
    thermal = problem.readings.noise_w_per_hz
    for device, (own, other) in enumerate(((2e-6, 3e-7), (4e-6, 1e-7))):
        density = thermal + other * 0.1 / 1e6
        rate = 0.5e6 * math.log2(1 + own * 0.1 / (density * 0.5e6))
        assert float(found[0, device]) == pytest.approx(20_000 / rate)


def test_excess_tells_what_budgets_are_broken() -> None:
    problem = two_devices()
    assert float(excess(problem, SERVER, HALVES)) == 0
    much = Shares(t(0.75, 0.5), t(0.5, 0.5))
    assert float(excess(problem, SERVER, much)) == pytest.approx(0.25)
    assert float(excess(two_devices(budget="printed"), SERVER, much)) == 0
    assert float(excess(problem, SERVER, Shares(t(0.5, 0.5), t(0.9, 0.3)))) == pytest.approx(0.2)
    assert float(excess(problem, SERVER, Shares(t(-0.1, 0.5), t(0.5, 0.5)))) == pytest.approx(0.1)


def test_relabelling_leaves_the_objective(
    draw: Callable[..., Problem], relabel: Callable[[Problem, Tensor, Tensor], Problem]
) -> None:
    problem = draw(3, 5, 4)
    device, server = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    place = server.argsort()
    x = problem.gain.argmax(-1)
    shares = Shares(torch.rand(3, 5).double() + 0.1, torch.rand(3, 5).double() + 0.1)
    moved = Shares(shares.bandwidth[:, device], shares.compute[:, device])
    other = objective(relabel(problem, device, server), place[x][:, device], moved)
    torch.testing.assert_close(objective(problem, x, shares), other)


def test_path_loss_of_the_street_canyon() -> None:
    # TR 38.901 Table 7.4.1-1 at 100 m and 3.5 GHz: line of sight before and behind the breakpoint,
    # which lies at 4 x 9 x 0.5 x fc / c = 210 m.
    slant = math.hypot(100, 8.5)
    los = 32.4 + 21 * math.log10(slant) + 20 * math.log10(3.5)
    nlos = 35.3 * math.log10(slant) + 22.4 + 21.3 * math.log10(3.5)
    found = path_loss_db(t(100, 100), torch.tensor([[True, False]]), 3.5e9)
    torch.testing.assert_close(found, t(los, nlos))
    near, far = path_loss_db(t(210.1, 210.2), torch.tensor([[True, True]]), 3.5e9)[0].tolist()
    assert far - near == pytest.approx(0, abs=0.05)
    assert float(line_of_sight_probability(t(18.0))) == 1
    assert float(line_of_sight_probability(t(36.0))) == pytest.approx(0.5 + 0.5 * math.exp(-1))


def test_work_follows_from_the_printed_flop_counts(draw: Callable[..., Problem]) -> None:
    problem = draw(4, 6, 3)
    # A round of 15 or 25 tokens by GPT2 at 2 x 137e6 FLOP, verified with one more by GPT2-XL.
    flop = problem.work_s * problem.capacity_flop_per_s.unsqueeze(1)
    tokens = flop / (2 * 1.558e9)
    assert {round(float(n), 6) for n in tokens.flatten()} == {16.0, 26.0}
    assert {float(b) for b in problem.payload_bits.flatten()} == {15 * 48.0, 25 * 48.0}
    speed = (tokens[..., 0] - 1) * 2 * 137e6 / problem.device_time_s
    assert {round(float(s) / 1e9) for s in speed.flatten()} == {3681, 2000, 2060}


def test_the_printed_page_can_be_taken_whole() -> None:
    config = P1Config(**PRINTED)
    assert (config.joules_per_flop, config.swap_test, config.budget) == (1e9, "printed", "printed")
    assert config.noise_w_per_hz == pytest.approx(10**-20.4)


def test_a_wrong_range_of_powers_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"power_min_dbm is 25.0 but power_max_dbm is 24.0"):
        P1Config(power_min_dbm=25)
