"""Futures and rollouts: what is known stays, what is drawn follows its law, truth comes true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.control.allocation import AllocationConfig
from uara.control.lookahead import LookAhead, LookAheadConfig
from uara.control.rules import RuleController
from uara.prediction import Physics
from uara.world.futures import sample_outages, sample_requests
from uara.world.lengths import AnswerLengths, draw_rest
from uara.world.outages import OutageConfig, draw_outages
from uara.world.requests import RequestConfig, TaskType, draw_requests
from uara.world.rollouts import WorldSimulator
from uara.world.world import World

MakeWorld = Callable[..., World]
GAIN_DB = [[-95, -100], [-105, -90], [-100, -100]]


def task(law: str) -> TaskType:
    return TaskType(
        name="only", weight=1, prompt_tokens_min=100, prompt_tokens_mean=200,
        prompt_tokens_max=400, output_tokens_min=20, output_tokens_mean=60,
        output_tokens_max=150, length_law=law,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("law", ["exponential", "lognormal"])
@pytest.mark.parametrize("so_far", [0.0, 12.5, 35.0, 100.0])
def test_the_rest_of_an_answer_has_the_mean_that_controllers_know(law: str, so_far: float) -> None:
    lengths = AnswerLengths.of(RequestConfig(tasks=(task(law),)))
    draw = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, kind = torch.full((20_000,), so_far), torch.zeros(20_000, dtype=torch.long)
    length = draw_rest(lengths, tokens, kind, draw)
    expected = lengths.expected_remaining_tokens(tokens[:1], kind[:1]).item()
    assert (length > tokens).all()
    assert length.max() <= 150
    # whole tokens against a continuous law
    assert (length - tokens).mean().item() == pytest.approx(expected, abs=0.6)


def play_until(world: World, slots: int, physics: Physics) -> None:
    everyone = torch.ones(world.num_networks, dtype=torch.bool)
    world.reset(everyone, torch.zeros(world.num_networks, dtype=torch.long),
                torch.arange(world.num_networks) + 7)  # fmt: skip
    rule = RuleController("max_compute", AllocationConfig(draft_length=4), physics)
    for _ in range(slots):
        world.step(rule.decide(world.state()))


def test_a_sampled_table_keeps_what_has_happened(make_world: MakeWorld, physics: Physics) -> None:
    world = make_world(GAIN_DB, num=40, slots=60, arrivals_per_s=0.2)
    play_until(world, 25, physics)
    now, known = world.progress, world.requests
    keys = torch.arange(40) + 1000
    fresh = draw_requests(
        keys, 3, 30.0, world.config.requests, world.acceptance_mean, world.acceptance_std
    )
    sampled = sample_requests(
        known, fresh, keys,
        time_s=world.time_s(), arrived=now.arrived, finished=now.finished, tokens=now.tokens,
        acceptance=world.state().acceptance, lengths=world.lengths,
    )  # fmt: skip
    number = torch.arange(known.task.shape[2])
    has_arrived = number < now.arrived[..., None]
    has_begun = number < (now.finished + now.active)[..., None]
    assert torch.equal(sampled.arrival_s[has_arrived], known.arrival_s[has_arrived])
    assert torch.equal(sampled.prompt_tokens[has_begun], known.prompt_tokens[has_begun])
    over = number < now.finished[..., None]
    assert torch.equal(sampled.output_tokens[over], known.output_tokens[over])
    # what is to come is new, after now, and in order
    later = ~has_arrived & sampled.arrival_s.isfinite()
    assert (sampled.arrival_s[later] >= 12.5).all()
    assert (sampled.arrival_s.diff(dim=2).nan_to_num(0) >= 0).all()
    # 40 networks of 3 devices with 0.2 requests per second, 17.5 s to come: 420 +- 20
    assert int(later.sum()) == pytest.approx(420, abs=65)
    current = (number == now.finished[..., None]) & now.active[..., None]
    drawn = sampled.output_tokens[current]
    assert (drawn > now.tokens[now.active]).all()
    assert not torch.equal(drawn, known.output_tokens[current])
    estimate = world.state().acceptance[now.active]
    assert torch.equal(sampled.acceptance[current], estimate)


def test_sampled_outages_keep_what_is_announced() -> None:
    config = OutageConfig(every_s=20, duration_s=8, notice_s=5)
    episodes, keys = torch.arange(50), torch.arange(50) + 500
    known, fresh = (draw_outages(k, 2, 200.0, config) for k in (episodes, keys))
    time_s = torch.full((50,), 60.0)
    start_s, end_s = sample_outages(
        known, fresh, keys, time_s=time_s, slot_s=0.5, config=config
    )  # fmt: skip
    seen = known[0] <= 65.0
    assert torch.equal(start_s[seen], known[0][seen])
    assert (start_s[~seen] > 65.0).all()
    over = known[1] <= 60.0
    assert torch.equal(end_s[over], known[1][over])
    is_open = seen & ~over
    assert is_open.any()
    assert (end_s[is_open] > 60.0).all()
    assert not torch.equal(end_s[is_open], known[1][is_open])


def total_s(world: World, controller: object) -> float:
    world.reset(
        torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long), torch.tensor([3])
    )
    controller.reset(torch.ones(1, dtype=torch.bool), torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    spent = 0.0
    for _ in range(300):
        outcome = world.step(controller.decide(world.state()))  # type: ignore[attr-defined]
        spent += outcome.alive_s.item()
        if outcome.drained.all():
            break
    return spent


def test_a_rollout_of_the_truth_costs_what_then_happens(
    make_world: MakeWorld, physics: Physics
) -> None:
    def make(num: int) -> World:
        return make_world(GAIN_DB, num=num, slots=30, arrivals_per_s=0.15)

    world = make(2)
    play_until(world, 10, physics)
    before = world.state_dict()
    rule = RuleController("max_compute", AllocationConfig(draft_length=4), physics)
    networks = torch.tensor([1, 0, 1])
    first = rule.decide(world.state().select(networks))
    cost = WorldSimulator(world, make).play(networks, None, first, rule, slots=30)
    assert all(torch.equal(before[name], now) for name, now in world.state_dict().items())
    spent = torch.zeros(2, dtype=torch.float64)
    for _ in range(300):
        outcome = world.step(rule.decide(world.state()))
        spent += outcome.alive_s
        if outcome.drained.all():
            break
    assert outcome.drained.all()
    torch.testing.assert_close(cost, spent[networks], rtol=1e-5, atol=1e-4)


def test_equal_keys_give_equal_futures(make_world: MakeWorld, physics: Physics) -> None:
    def make(num: int) -> World:
        return make_world(GAIN_DB, num=num, slots=30, arrivals_per_s=0.15)

    world = make(1)
    play_until(world, 6, physics)
    rule = RuleController("max_compute", AllocationConfig(draft_length=4), physics)
    networks = torch.zeros(4, dtype=torch.long)
    first = rule.decide(world.state().select(networks))
    keys = torch.tensor([5, 6, 5, 7])
    cost = WorldSimulator(world, make).play(networks, keys, first, rule, slots=20)
    assert cost[0] == cost[2]
    assert len(cost.unique()) == 3


def test_looking_at_the_whole_true_future_never_costs(
    make_world: MakeWorld, physics: Physics
) -> None:
    def make(num: int) -> World:
        return make_world(
            [[-90, -91]] * 3, num=num, slots=8, arrivals_per_s=1.0,
            tasks=[task("exponential")], servers=("4xRTXA6000", "4xA100-40GB"),
        )  # fmt: skip

    allocation = AllocationConfig(draft_length=4)
    base, player = (RuleController("max_sinr", allocation, physics) for _ in "ab")
    plain = total_s(make(1), base)
    world = make(1)
    ahead = LookAhead(
        base, player, base.allocator, WorldSimulator(world, make),
        LookAheadConfig(slots=8, defer=False, changes="all"), true_future=True,
    )  # fmt: skip
    assert total_s(world, ahead) < plain * 0.99
