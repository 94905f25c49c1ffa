"""Outages: their law, their announcement, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from uara.world.outages import OutageConfig, draw_outages, outages_at, reachable_in_outage
from uara.world.world import World

MakeWorld = Callable[..., World]


def test_outages_have_their_frequency_and_length() -> None:
    config = OutageConfig(every_s=30.0, duration_s=5.0)
    start, end = draw_outages(torch.arange(3000), 2, 300.0, config)
    assert (end[..., :-1] < start[..., 1:]).all()
    assert (end - start).mean().item() == pytest.approx(5.0, rel=0.02)
    # far from the start, the share of time that a server is out is 5 / 35
    now = torch.full((3000,), 200.0)
    out = ((start <= now[:, None, None]) & (end > now[:, None, None])).any(-1)
    assert out.double().mean().item() == pytest.approx(5 / 35, abs=0.015)
    assert (end[..., -1] > 300).all()


def test_outage_is_announced_in_time_and_not_before() -> None:
    start, end = torch.tensor([[[10.2]]]), torch.tensor([[[12.0]]])
    seen = {}
    for slot in range(30):
        down, soon = outages_at(torch.tensor([slot * 0.5]), start, end, 0.5, 3.0)
        seen[slot * 0.5] = (down.item(), soon.item())
    assert seen[7.0] == (False, math.inf)
    assert seen[7.5] == (False, pytest.approx(2.7))
    assert seen[9.5] == (False, pytest.approx(0.7))
    # it is out in every slot that the outage touches
    assert [time for time, (down, _) in seen.items() if down] == [10.0, 10.5, 11.0, 11.5]
    assert seen[11.0] == (True, 0.0)
    assert seen[12.0] == (False, math.inf)


def test_servers_that_are_out_are_out_of_reach_unless_all_are() -> None:
    reach = torch.tensor([[[True, True, False], [False, True, False]]])
    down = torch.tensor([[False, True, False]])
    found = reachable_in_outage(reach, down)
    assert found.tolist() == [[[True, False, False], [False, True, False]]]


def with_outage(make_world: MakeWorld, one_task: Any, start_s: float, end_s: float) -> World:
    world = make_world(
        [[-90.0, -90.0]],
        tasks=(one_task(2000, 300),),
        servers=("4xL40S", "4xL40S"),
        arrivals_per_s=0.2,
        acceptance_std=0.0,
        slots=30,
        outages=OutageConfig(notice_s=4.0),
    )
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([5]))
    for times, value in zip(world.outages, (start_s, end_s), strict=True):
        times.fill_(math.inf)
        times[0, 0, 0] = value
    return world


def test_request_at_a_server_that_goes_out_stands_still_and_reads_anew(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world, decide = with_outage(make_world, one_task, 1e9, 1e9), to_server(0)
    while not (world.state().tokens_so_far > 20).any():
        world.step(decide(world.state()))
    now_s = world.time_s().item()
    world.outages[0][0, 0, 0], world.outages[1][0, 0, 0] = now_s + 1.0, now_s + 3.0
    world._forget()
    assert world.state().outage_in_s.tolist() == [[pytest.approx(1.0), math.inf]]  # type: ignore[union-attr]
    assert world.state().reachable.all()
    for _ in range(2):
        assert world.step(decide(world.state())).tokens.item() > 0
    before = world.state()
    assert before.is_down.tolist() == [[True, False]]  # type: ignore[union-attr]
    assert before.kv_tokens.item() == 0
    assert before.reachable.tolist() == [[[False, True]]]
    for _ in range(4):
        outcome = world.step(decide(world.state()))
        assert outcome.held_back.item()  # type: ignore[union-attr]
        assert outcome.tokens.item() == outcome.uplink_bits.item() == 0
        assert outcome.server_energy_j.sum() == 0
    after = world.state()
    assert not after.is_down.any()  # type: ignore[union-attr]
    assert after.tokens_so_far.item() == before.tokens_so_far.item()
    assert after.kv_tokens.item() == 0
    outcome = world.step(decide(after))
    assert world.state().kv_tokens.item() > 1000
    assert not outcome.handover.item()


def test_moving_in_time_spares_the_wait(
    make_world: MakeWorld, one_task: Any, to_server: Any, play_out: Any
) -> None:
    def mean_e2e_s(reads_the_calendar: bool) -> float:
        world = with_outage(make_world, one_task, 1e9, 1e9)
        stay, leave = to_server(0), to_server(1)

        def decide(state: Any) -> Any:
            world.outages[0][0, 0, 0], world.outages[1][0, 0, 0] = 5.0, 20.0
            world._forget()
            calm = torch.isinf(world.state().outage_in_s[0, 0]).item()  # type: ignore[index]
            return (stay if calm or not reads_the_calendar else leave)(state)

        played = play_out(world, decide, 5)
        return (played.sum("e2e_s").sum() / played.sum("finished").sum()).item()

    assert mean_e2e_s(True) < 0.8 * mean_e2e_s(False)
