"""Batteries: joules are conserved, and a dead device's requests fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from uara.world.batteries import BatteryConfig, drain, draw_battery_j
from uara.world.world import World

MakeWorld = Callable[..., World]
GAIN_DB = [[-95.0, -105.0], [-108.0, -98.0], [-101.0, -99.0]]


def test_charge_lies_between_its_bounds() -> None:
    capacity = torch.tensor([[100.0, 1000.0]]).expand(4000, -1)
    charge = draw_battery_j(torch.arange(4000), capacity, BatteryConfig(charge_min=0.2)) / capacity
    assert 0.2 <= charge.min() < 0.21
    assert 0.99 < charge.max() <= 1.0
    assert charge.mean().item() == pytest.approx(0.6, abs=0.01)


def test_battery_carries_a_share_of_its_last_slot() -> None:
    drained = drain(
        torch.tensor([[10.0, 3.0, 4.0, 0.0]]), torch.tensor([[5.0, 5.0, 3.0, 5.0]]), 1.0
    )
    assert drained.spent_j.tolist() == [[6, 3, 4, 0]]
    assert drained.done_share.tolist() == [[1, 0.5, 1, 1]]
    assert drained.dies.tolist() == [[False, True, True, False]]
    assert drained.share_of_left.tolist() == [[pytest.approx(0.6), 1, 1, 0]]


def weak(make_world: MakeWorld, **battery: float) -> World:
    bounds = {"charge_min": 0.0003, "charge_max": 0.001} | battery
    return make_world(
        GAIN_DB, num=4, arrivals_per_s=0.25, batteries=BatteryConfig(**bounds),
        servers=("4xL40S", "4xA40"),
    )  # fmt: skip


@pytest.mark.parametrize("idle_power_w", [0.0, 0.5])
def test_joules_spent_and_left_are_those_at_the_start(
    make_world: MakeWorld, to_anywhere: Any, play_out: Any, idle_power_w: float
) -> None:
    world = weak(make_world, idle_power_w=idle_power_w)
    played = play_out(world, to_anywhere(0))
    start_j, left_j = played.states[0].battery_j, world.state().battery_j
    assert left_j is not None
    assert (left_j == 0).any()
    assert (left_j > 0).any() or idle_power_w > 0
    torch.testing.assert_close(
        played.sum("device_energy_j") + left_j, start_j.double(), rtol=1e-5, atol=1e-3
    )
    # what the reward may weigh: joules spent over joules left when the slot began
    for state, outcome in zip(played.states[:50], played.outcomes[:50], strict=True):
        share = outcome.device_energy_j / state.battery_j.clamp_min(1e-9)
        torch.testing.assert_close(outcome.battery_share, share.clamp(max=1), rtol=1e-4, atol=1e-6)


def test_requests_of_dead_devices_fail_and_none_is_lost(
    make_world: MakeWorld, to_anywhere: Any, play_out: Any
) -> None:
    world = weak(make_world)
    played = play_out(world, to_anywhere(0))
    drawn = torch.isfinite(world.requests.arrival_s).sum(2)
    failed, finished = played.sum("failed"), played.sum("finished")
    assert torch.equal(failed + finished, drawn.double())
    battery_j = world.state().battery_j
    assert battery_j is not None
    assert (failed[battery_j > 0] == 0).all()
    assert failed.sum() > 5
    # after its death a device does nothing any more
    for state, outcome in zip(played.states, played.outcomes, strict=True):
        dead = state.battery_j == 0
        assert not (dead & state.has_request).any()
        for name in ("tokens", "uplink_bits", "downlink_bits", "device_energy_j"):
            assert (getattr(outcome, name)[dead] == 0).all(), name


def test_failing_never_pays(make_world: MakeWorld, to_anywhere: Any, play_out: Any) -> None:
    def alive_s(failure_s: float) -> tuple[torch.Tensor, torch.Tensor]:
        played = play_out(weak(make_world, failure_s=failure_s), to_anywhere(0))
        return played.sum("alive_s"), played.sum("failed").sum(1)

    free, failed = alive_s(0.0)
    charged, _ = alive_s(60.0)
    torch.testing.assert_close(charged - free, 60 * failed, rtol=1e-5, atol=1e-2)


def test_battery_that_does_not_bind_changes_nothing(
    make_world: MakeWorld, to_anywhere: Any, play_out: Any
) -> None:
    plain = make_world(GAIN_DB, num=4, arrivals_per_s=0.25, servers=("4xL40S", "4xA40"))
    full = weak(make_world, charge_min=1.0, charge_max=1.0)
    here, there = play_out(plain, to_anywhere(0)), play_out(full, to_anywhere(0))
    for name in ("tokens", "alive_s", "device_energy_j", "e2e_s", "uplink_bits"):
        assert torch.equal(here.stack(name), there.stack(name)), name


def test_bounds_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"charge_min is 0.9 but charge_max is 0.5"):
        BatteryConfig(charge_min=0.9, charge_max=0.5)
