"""Acceptance that varies: by position, between two states, by traces; against simulated rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from uara.errors import UserError
from uara.network import NetworkState
from uara.world.acceptance import (
    MarkovAcceptance,
    PositionalAcceptance,
    TraceAcceptance,
    Traces,
    draw_states,
    positional_rates,
    replay_traces,
)
from uara.world.requests import RequestConfig
from uara.world.world import World

MakeWorld = Callable[..., World]
KEYS = (torch.arange(60)[:, None, None], torch.arange(5)[:, None], torch.arange(8))


def simulate_rounds(rates: list[float], rounds: int) -> tuple[float, float]:
    """Play draft rounds token by token; return tokens per round and accepted over tested."""
    draw = torch.rand(rounds, len(rates), generator=torch.Generator().manual_seed(0))
    passes = draw < torch.tensor(rates)
    accepted = passes.int().cumprod(1).sum(1)
    tested = (accepted + 1).clamp(max=len(rates))
    return (accepted + 1).double().mean().item(), (accepted.sum() / tested.sum()).item()


@pytest.mark.parametrize("length", [1, 3, 6])
def test_equivalent_rate_commits_as_many_tokens_as_rounds_by_position(length: int) -> None:
    factors = (1.0, 0.9, 0.8, 0.5)
    by_position = [0.8 * f for f in (*factors, 0.5, 0.5)][:length]
    tokens, per_tested = simulate_rounds(by_position, 200_000)
    rates = positional_rates(torch.tensor([[0.8]]), torch.tensor([[length]]), factors)
    a = rates.equivalent.item()
    assert sum(a**k for k in range(length + 1)) == pytest.approx(tokens, rel=3e-3)
    assert rates.per_tested.item() == pytest.approx(per_tested, rel=3e-3)


def test_equal_positions_leave_the_rate_alone() -> None:
    rate = torch.tensor([[0.1, 0.5, 0.95]])
    rates = positional_rates(rate, torch.tensor([[0, 4, 8]]), (1.0,))
    torch.testing.assert_close(rates.equivalent, rate, atol=1e-6, rtol=0)
    torch.testing.assert_close(rates.per_tested, rate, atol=1e-6, rtol=0)


def test_states_have_the_requests_mean_their_share_and_their_persistence() -> None:
    config = MarkovAcceptance(gap=0.4, easy_share=0.75, persistence=0.6)
    mean = torch.full((60, 5, 8), 0.7)
    rate = draw_states(KEYS, mean, 40, config)
    assert rate.unique().tolist() == pytest.approx([0.4, 0.8])
    assert rate.mean().item() == pytest.approx(0.7, abs=0.01)
    easy = rate > 0.6
    assert easy[..., 0].double().mean().item() == pytest.approx(0.75, abs=0.03)
    stays = (easy[..., 1:] & easy[..., :-1]).sum() / easy[..., :-1].sum()
    # kept by itself, or drawn anew and easy again
    assert stays.item() == pytest.approx(0.6 + 0.4 * 0.75, abs=0.01)


def test_gap_shrinks_at_the_bounds_and_the_mean_stays() -> None:
    mean = torch.full((60, 5, 8), 0.95)
    rate = draw_states(KEYS, mean, 40, MarkovAcceptance(gap=0.9, easy_share=0.5, persistence=0.0))
    assert rate.min().item() == pytest.approx(0.92)
    assert rate.max().item() == pytest.approx(0.98)
    assert rate.mean().item() == pytest.approx(0.95, abs=2e-3)


def write(folder: Path, **changes: Any) -> Path:
    traces = {"chat": [[0.5, 0.6, 0.7], [0.9]], "code": [[0.2]]}
    path = folder / "traces.json"
    path.write_text(
        json.dumps({"format_version": 1, "block_tokens": 8, "traces": traces} | changes)
    )
    return path


def test_replayed_rates_are_those_of_one_trace_over_and_over(tmp_path: Path) -> None:
    traces = Traces.load(write(tmp_path), ("code", "chat"))
    assert traces.block_tokens == 8
    task = torch.ones(60, 5, 8, dtype=torch.long)
    rate = replay_traces(KEYS, task, 5, traces).flatten(0, 2)
    is_long = rate[:, 0] == 0.5
    assert 0.4 < is_long.double().mean() < 0.6
    assert rate[is_long].unique(dim=0).tolist() == [pytest.approx([0.5, 0.6, 0.7, 0.5, 0.6])]
    assert rate[~is_long].unique(dim=0).tolist() == [pytest.approx([0.9] * 5)]
    assert (replay_traces(KEYS, 0 * task, 5, traces) == torch.tensor(0.2)).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"block_tokens": 0}, "block_tokens 0"),
        ({"traces": {"chat": [[0.5]]}}, "no acceptance traces of task 'code'; it has chat"),
        ({"traces": {"chat": [[0.5]], "code": [[]]}}, "no acceptance traces of task 'code'"),
        ({"traces": {"chat": [[0.5]], "code": [[1.5]]}}, "a rate of 1.5 in task 'code'"),
        ({"traces": 7}, "holds no acceptance traces"),
    ],
)
def test_traces_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        Traces.load(write(tmp_path, **changes), ("chat", "code"))
    assert "\n" not in str(refusal.value)


# In the world.


def world_of(make_world: MakeWorld, one_task: Any, process: object, **more: Any) -> World:
    tasks = (one_task(300, 200),)
    requests = RequestConfig(arrivals_per_s=0.3, tasks=tasks, acceptance=process)
    return make_world(
        [[-95.0]], tasks=tasks, requests=requests, acceptance_std=0.0, servers=("4xL40S",), **more
    )


def test_fewer_accepted_tokens_take_more_rounds(
    make_world: MakeWorld, one_task: Any, play_out: Any, to_server: Any
) -> None:
    # 200 tokens in rounds of 1 + 0.7 + 0.7 x 0.35 tokens, against 1 + 0.7 + 0.49
    rounds = {}
    for name, factors in {"even": (1.0,), "falling": (1.0, 0.5)}.items():
        world = world_of(make_world, one_task, PositionalAcceptance(factors=factors))
        played = play_out(world, to_server(length=2), 3)
        drafts = played.sum("uplink_bits") - played.sum("finished") * (
            world.physics.codec.prompt_bits(300.0)
        )
        rounds[name] = (drafts / world.physics.codec.draft_bits(2.0)).item()
        requests = played.sum("finished").item()
        assert requests > 0
    assert rounds["even"] == pytest.approx(requests * 200 / 2.19, rel=1e-3)
    assert rounds["falling"] == pytest.approx(requests * 200 / 1.945, rel=1e-3)


def test_estimate_of_controllers_counts_accepted_over_tested(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = world_of(make_world, one_task, PositionalAcceptance(factors=(1.0, 0.5)))
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([3]))
    last, decide = None, to_server(length=2)
    for _ in range(60):
        state = world.state()
        last = state if (state.tokens_so_far > 100).any() else last
        world.step(decide(state))
    assert last is not None
    accepted, tested = 0.7 + 0.245, 1 + 0.7
    rounds = last.tokens_so_far.item() / (1 + accepted)
    expected = (20 * 0.7 + rounds * accepted) / (20 + rounds * tested)
    assert last.acceptance.item() == pytest.approx(expected, rel=1e-3)


def truth_by_token(world: World, decide: Callable[[NetworkState], Any]) -> dict[int, float]:
    """Note the true rate at each number of tokens at which a slot of the first request begins."""
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([3]))
    found: dict[int, float] = {}
    for _ in range(80):
        state = world.state(true=True)
        if state.has_request.item() and world.progress.finished.item() == 0:
            found[int(state.tokens_so_far.item()) // 16] = state.acceptance.item()
        world.step(decide(state))
    return found


def test_text_has_its_rates_whoever_decides(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    process = MarkovAcceptance(gap=0.5, persistence=0.3)
    fast = truth_by_token(world_of(make_world, one_task, process), to_server(length=6))
    slow = truth_by_token(world_of(make_world, one_task, process), to_server(length=0))
    common = fast.keys() & slow.keys()
    assert len(common) > 4
    assert len({fast[block] for block in common}) == 2
    assert all(fast[block] == slow[block] for block in common)


def test_world_replays_the_file(
    make_world: MakeWorld, one_task: Any, to_server: Any, tmp_path: Path
) -> None:
    path = write(tmp_path, block_tokens=16, traces={"only": [[0.31, 0.62]]})
    world = world_of(make_world, one_task, TraceAcceptance(path=str(path)))
    found = truth_by_token(world, to_server(length=2))
    assert len(found) > 4
    for block, rate in found.items():
        assert rate == pytest.approx(0.62 if block % 2 else 0.31)


def test_drift_moves_truth_and_not_what_is_known(make_world: MakeWorld, one_task: Any) -> None:
    tasks = (one_task(300, 200),)
    requests = RequestConfig(arrivals_per_s=0.5, tasks=tasks, acceptance_drift=0.25)
    world = make_world([[-95.0]], tasks=tasks, requests=requests, acceptance_std=0.0, num=40)
    world.reset(torch.ones(40, dtype=torch.bool), torch.zeros(40).long(), torch.arange(40) * 7919)
    arrival, rate = world.requests.arrival_s, world.requests.acceptance
    finite = torch.isfinite(arrival)
    moved: Tensor = (rate - 0.7).abs()[finite].double()
    torch.testing.assert_close(moved, 0.25 * arrival[finite] / 20.0, atol=1e-6, rtol=1e-4)
    late = (rate - 0.7)[finite & (arrival > 5)]
    assert 0.2 < (late > 0).double().mean() < 0.8
    assert world.acceptance_mean.tolist() == [pytest.approx(0.7)]
