"""Turns of a conversation: their prompts, and caches that stay where the last turn was served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from uara.network import NetworkState
from uara.serving.machine import KV_BYTES_PER_TOKEN
from uara.world.conversations import ConversationConfig
from uara.world.requests import RequestConfig, RequestTable, draw_requests
from uara.world.world import World

MakeWorld = Callable[..., World]
MEAN, STD = torch.full((4,), 0.7), torch.full((4,), 0.1)
TALKING = ConversationConfig(continues=0.6, max_context_tokens=9000)


def draw(config: ConversationConfig | None) -> RequestTable:
    requests = RequestConfig(arrivals_per_s=0.15, conversations=config)
    return draw_requests(torch.arange(80), 4, 60.0, requests, MEAN, STD)


def test_next_turn_repeats_all_that_was_said() -> None:
    table, alone = draw(TALKING), draw(None)
    history = table.history_tokens
    assert history is not None
    torch.testing.assert_close(table.prompt_tokens - history, alone.prompt_tokens)
    assert torch.equal(table.output_tokens, alone.output_tokens)
    assert torch.equal(table.arrival_s, alone.arrival_s)
    said = (table.prompt_tokens + table.output_tokens)[..., :-1]
    turns = history[..., 1:] > 0
    assert torch.equal(history[..., 1:][turns], said[turns])
    assert (history[..., 0] == 0).all()
    assert table.prompt_tokens.max() <= 9000
    # a turn follows with its probability wherever it fits
    fits = said + alone.prompt_tokens[..., 1:] <= 9000
    assert turns[fits].double().mean().item() == pytest.approx(0.6, abs=0.02)
    assert not turns[~fits].any()


def talk(make_world: MakeWorld, one_task: Any, **memory: Any) -> World:
    """Two requests of 1000 tokens, the second the next turn of the first; no more."""
    tasks = (one_task(1000, 50),)
    config = RequestConfig(
        arrivals_per_s=0.1, tasks=tasks, conversations=ConversationConfig(continues=0.99)
    )
    world = make_world(
        [[-90.0, -90.0]], slots=80, tasks=tasks, requests=config, acceptance_std=0.0,
        servers=("4xL40S", "4xL40S"), memory=memory,
    )  # fmt: skip
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([1]))
    table = world.requests
    assert table.history_tokens is not None
    table.arrival_s.fill_(torch.inf)
    table.arrival_s[0, 0, :2] = torch.tensor([0.1, 20.1])
    table.history_tokens.zero_()
    table.history_tokens[0, 0, 1] = 1050
    table.prompt_tokens.fill_(1000)
    table.prompt_tokens[0, 0, 1] = 2050
    world.arrivals, world.waiting_s = world._count_by_slot(table)
    return world


def second_turn(world: World, first: Any, second: Any) -> tuple[list[NetworkState], float]:
    """Serve both turns; return the states of the second one and its latency."""
    states = []
    for _ in range(200):
        state = world.state()
        is_second = world.progress.finished.item() == 1
        outcome = world.step((second if is_second else first)(state))
        if is_second and state.has_request.item():
            states.append(state)
            if outcome.finished.item():
                return states, outcome.e2e_s.item()
    raise AssertionError("the second turn did not end")


def test_second_turn_sends_and_reads_its_new_part_only(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = talk(make_world, one_task)
    states, here_s = second_turn(world, to_server(0), to_server(0))
    first = states[0]
    assert (first.server.item(), first.kv_tokens.item()) == (0, 1050)
    assert first.upload_bits.item() == world.physics.codec.prompt_bits(1000.0)
    assert first.prompt_tokens.item() == 2050
    # elsewhere the whole context is read: 1050 tokens more at 0.24 ms
    there, there_s = second_turn(talk(make_world, one_task), to_server(0), to_server(1))
    assert there[0].server.item() == 0
    assert there_s - here_s == pytest.approx(1050 * 140e9 / (4 * 362e12 * 0.4), rel=0.02)


def test_cache_may_follow_over_the_backhaul(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    def latency_s(backhaul_bps: float) -> float:
        world = talk(make_world, one_task, handover="transfer", backhaul_bps=backhaul_bps)
        return second_turn(world, to_server(0), to_server(1))[1]

    fast_s, slow_s = latency_s(1e15), latency_s(1e9)
    bits = 1050 * KV_BYTES_PER_TOKEN * 8
    assert slow_s - fast_s == pytest.approx(bits / 1e9, rel=0.01)
    stay_s = second_turn(talk(make_world, one_task), to_server(0), to_server(0))[1]
    assert fast_s == pytest.approx(stay_s, rel=1e-3)


def test_idle_cache_takes_memory_until_its_conversation_ends(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = talk(make_world, one_task)
    free = world.state().kv_free_tokens.clone()
    while world.progress.finished.item() < 1:
        world.step(to_server(0)(world.state()))
    state = world.state()
    assert not state.has_request.item()
    assert (free - state.kv_free_tokens).tolist() == [[1050, 0]]
    world.requests.history_tokens.zero_()  # type: ignore[union-attr]
    while not world.state().has_request.item():
        world.step(to_server(0)(world.state()))
    fresh = world.state()
    assert (fresh.server.item(), fresh.kv_tokens.item()) == (-1, 0)
    assert torch.equal(fresh.kv_free_tokens, free)
