"""KV memory: who is admitted and in which order, and that a full server makes requests wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase
from uara.world.conversations import ConversationConfig
from uara.world.memory import Claims, MemoryConfig, admit
from uara.world.requests import RequestConfig
from uara.world.world import World

MakeWorld = Callable[..., World]


def claims(rows: list[tuple[float, int, bool, float]], caches: list[tuple[float, int, float]]
           ) -> Claims:  # fmt: skip
    """Make claims of (tokens, server, resident, since), caches of (tokens, server, last used)."""
    tokens, server, resident, since = zip(*rows, strict=True)
    held, at, used = zip(*caches, strict=True)
    return Claims(
        tokens=torch.tensor([tokens]),
        server=torch.tensor([server]),
        wants=torch.tensor([[t > 0 for t in tokens]]),
        is_resident=torch.tensor([resident]),
        since=torch.tensor([since]),
        cache_tokens=torch.tensor([held]),
        cache_server=torch.tensor([at]),
        cache_since=torch.tensor([used]),
    )


def test_residents_stay_and_nobody_overtakes() -> None:
    asked = claims(
        # first come, first served: the big one of slot 3 does not fit, the small one behind waits
        [(40.0, 0, True, 9.0), (70.0, 0, False, 3.0), (10.0, 0, False, 5.0), (90.0, 1, False, 8.0)],
        [(5.0, 1, 2.0), (5.0, 1, 7.0), (10.0, 0, 7.0), (0.0, -1, 0.0)],
    )
    found = admit(asked, torch.tensor([[100.0, 96.0]]))
    assert found.admitted.tolist() == [[True, False, False, True]]
    # caches give way to who waits, and the one used last stays longest
    assert found.kept.tolist() == [[False, True, False, False]]


def admit_one_by_one(asked: Claims, capacity: list[float]) -> list[bool]:
    """Admit the requests of one network in turn, as a queue at each server would."""
    order = sorted(
        range(asked.tokens.shape[1]),
        key=lambda i: (not asked.is_resident[0, i], asked.since[0, i].item(), i),
    )
    free, blocked = list(capacity), [False] * len(capacity)
    admitted = [False] * len(order)
    for i in order:
        if not asked.wants[0, i]:
            continue
        j, need = int(asked.server[0, i]), asked.tokens[0, i].item()
        if not blocked[j] and need <= free[j]:
            admitted[i], free[j] = True, free[j] - need
        else:
            blocked[j] = True
    return admitted


row = st.tuples(
    st.integers(0, 60).map(float), st.integers(0, 2), st.booleans(), st.integers(0, 9).map(float)
)


@given(st.lists(row, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_all_at_once_is_one_by_one(rows: list[tuple[float, int, bool, float]]) -> None:
    capacity = [100.0, 60.0, 61.0]
    # residents were admitted together before, so they fit
    for j in range(3):
        total = 0.0
        for i, (tokens, server, resident, since) in enumerate(rows):
            if server == j and resident:
                total += tokens
                rows[i] = (tokens, server, total <= capacity[j], since)
    asked = claims(rows, [(0.0, -1, 0.0)] * len(rows))
    found = admit(asked, torch.tensor([capacity]))
    assert found.admitted[0].tolist() == admit_one_by_one(asked, capacity)


def crowd(make_world: MakeWorld, one_task: Any, capacity: int, **memory: Any) -> World:
    """Four devices, one server that holds `capacity` tokens, requests of 1000 + 100 tokens."""
    return make_world(
        [[-90.0]] * 4,
        num=2,
        tasks=(one_task(1000, 100),),
        arrivals_per_s=0.3,
        servers=("4xL40S",),
        memory=MemoryConfig(admission=True, capacity_tokens=(capacity,), **memory),
    )


def test_full_server_serves_no_more_than_fit(
    make_world: MakeWorld, one_task: Any, to_server: Any, play_out: Any
) -> None:
    world = crowd(make_world, one_task, 2500)
    played = play_out(world, to_server(0))
    assert torch.equal(
        played.sum("finished"), torch.isfinite(world.requests.arrival_s).sum(2).double()
    )
    assert played.stack("held_back").any()
    for state, outcome in zip(played.states, played.outcomes, strict=True):
        held = outcome.held_back
        assert (outcome.tokens[held] == 0).all()
        assert (outcome.downlink_bits[held] == 0).all()
        # two requests of at most 1100 tokens fit into 2500
        assert (state.kv_tokens > 0).sum(1).max() <= 2
        assert (outcome.tokens > 0).sum(1).max() <= 2
        assert (state.kv_free_tokens >= 0).all()
        waiting = state.has_request & held
        assert (state.phase[waiting & (state.upload_bits <= 0)] == Phase.PREFILLING).all()


def test_all_memory_that_was_filled_is_freed(
    make_world: MakeWorld, one_task: Any, to_server: Any, play_out: Any
) -> None:
    played = play_out(crowd(make_world, one_task, 2500), to_server(0))
    # without handovers each request fills 1000 + 100 tokens once
    expected = 1100 * played.sum("finished").sum(1)
    torch.testing.assert_close(played.sum("kv_freed_tokens")[:, 0], expected, rtol=1e-5, atol=0.1)


def test_memory_that_does_not_bind_changes_nothing(
    make_world: MakeWorld, one_task: Any, to_anywhere: Any, play_out: Any
) -> None:
    def run(**memory: Any) -> Any:
        world = make_world(
            [[-95.0, -100.0], [-99.0, -97.0]], num=2, tasks=(one_task(1000, 100),),
            arrivals_per_s=0.2, servers=("4xL40S", "4xA40"), memory=MemoryConfig(**memory),
        )  # fmt: skip
        return play_out(world, to_anywhere(4))

    here, there = run(), run(admission=True, capacity_tokens=(10_000, 10_000))
    assert here.stack("handover").any()
    for name in ("tokens", "alive_s", "device_energy_j", "e2e_s", "uplink_bits", "handover"):
        torch.testing.assert_close(here.stack(name), there.stack(name), msg=name)


def arrive(world: World, seconds: list[float]) -> None:
    """Let one request arrive at each device of one network, and no more."""
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([1]))
    table = world.requests
    table.arrival_s.fill_(torch.inf)
    table.arrival_s[0, :, 0] = torch.tensor(seconds, dtype=torch.float64)
    world.arrivals, world.waiting_s = world._count_by_slot(table)


def test_first_come_is_first_served(make_world: MakeWorld, one_task: Any, to_server: Any) -> None:
    world = make_world(
        [[-90.0]] * 3, tasks=(one_task(1000, 100),), servers=("4xL40S",), slots=80,
        memory=MemoryConfig(admission=True, capacity_tokens=(1200,)),
    )  # fmt: skip
    arrive(world, [2.1, 0.1, 1.1])
    order: list[int] = []
    while len(order) < 3:
        outcome = world.step(to_server(0)(world.state()))
        order += outcome.finished[0].nonzero()[:, 0].tolist()
        assert world.time_s() < 60
    assert order == [1, 2, 0]


def test_moving_to_a_full_server_is_a_handover_that_loses_the_cache(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = make_world(
        [[-90.0, -90.0]] * 2, tasks=(one_task(1000, 100),), servers=("4xL40S",) * 2, slots=80,
        memory=MemoryConfig(admission=True, capacity_tokens=(1200, 1200)),
    )  # fmt: skip
    arrive(world, [0.1, 0.1])
    while not (world.state().tokens_so_far > 10).all():
        world.step(to_server([0, 1])(world.state()))
    outcome = world.step(to_server([0, 0])(world.state()))
    assert outcome.handover.tolist() == [[False, True]]
    assert outcome.held_back.tolist() == [[False, True]]  # type: ignore[union-attr]
    assert outcome.kv_freed_tokens[0, 1] > 1000  # type: ignore[index]
    state = world.state()
    assert (state.server[0, 1].item(), state.kv_tokens[0, 1].item()) == (0, 0)
    assert not world.step(to_server([0, 0])(state)).handover.any()


def test_memory_balances_slot_by_slot_with_idle_caches(
    make_world: MakeWorld, one_task: Any, to_server: Any, play_out: Any
) -> None:
    tasks = (one_task(500, 60),)
    requests = RequestConfig(
        arrivals_per_s=0.3, tasks=tasks, conversations=ConversationConfig(max_context_tokens=1700)
    )
    world = make_world(
        [[-90.0]] * 4, num=2, tasks=tasks, requests=requests, servers=("4xL40S",), slots=60,
        memory=MemoryConfig(admission=True, capacity_tokens=(2600,)),
    )  # fmt: skip
    caches: list[Tensor] = []

    def decide(state: NetworkState) -> Decision:
        assert world.progress.cache_tokens is not None
        caches.append(world.progress.cache_tokens.clone())
        return to_server(0)(state)  # type: ignore[no-any-return]

    played = play_out(world, decide)
    evicted = 0
    for t, outcome in enumerate(played.outcomes[:-1]):
        before, after = played.states[t], played.states[t + 1]
        # written: up to the whole context where the answer ended, else what has been added
        ended = before.prompt_tokens + outcome.finished_tokens
        reached = torch.where(outcome.finished, ended, after.kv_tokens)
        goes_on = before.has_request
        written = ((reached - before.kv_tokens).clamp_min(0) * goes_on).sum(1)
        held_before = before.kv_tokens.sum(1) + caches[t].sum(1)
        held_after = after.kv_tokens.sum(1) + caches[t + 1].sum(1)
        freed = outcome.kv_freed_tokens[:, 0]
        torch.testing.assert_close(held_before + written - freed, held_after, rtol=1e-4, atol=0.05)
        assert (after.kv_free_tokens >= -1e-3).all()
        evicted += int((~before.has_request & (caches[t] > caches[t + 1])).sum())
    assert evicted > 3


def test_requests_that_move_are_conserved_with_their_caches(
    make_world: MakeWorld, one_task: Any, to_anywhere: Any, play_out: Any
) -> None:
    world = make_world(
        [[-90.0, -90.0]] * 3, num=2, tasks=(one_task(1000, 100),), arrivals_per_s=0.2,
        servers=("4xL40S", "4xA40"),
        memory=MemoryConfig(admission=True, capacity_tokens=(2300, 1200), handover="transfer"),
    )  # fmt: skip
    played = play_out(world, to_anywhere(1))
    assert torch.equal(
        played.sum("finished"), torch.isfinite(world.requests.arrival_s).sum(2).double()
    )
    torch.testing.assert_close(
        played.sum("alive_s"), played.sum("e2e_s").sum(1), rtol=1e-5, atol=1e-2
    )
    assert played.sum("kv_moved_tokens").sum() > 100
    for state in played.states:
        assert (state.kv_free_tokens >= -1e-3).all()
        arriving: Tensor = state.kv_arriving_tokens  # type: ignore[assignment]
        assert (state.kv_tokens + arriving <= state.context_tokens + 1e-3).all()
    free = world.state().kv_free_tokens
    assert free.tolist() == [[2300, 1200]] * 2


def test_cache_on_its_way_loads_no_server(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = make_world(
        [[-90.0, -90.0]], tasks=(one_task(2000, 300),), arrivals_per_s=0.2,
        servers=("4xL40S", "4xL40S"), memory=MemoryConfig(handover="transfer", backhaul_bps=4e9),
    )  # fmt: skip
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([5]))
    while not (world.state().tokens_so_far > 20).any():
        world.step(to_server(0)(world.state()))
    before = world.state()
    # 327,680 bytes a token at 4 Gbit/s: 763 tokens in half a second
    outcome = world.step(to_server(1)(before))
    assert outcome.handover.item()
    assert outcome.tokens.item() == 0
    assert outcome.server_energy_j.sum() == 0
    assert outcome.kv_moved_tokens.item() == pytest.approx(4e9 * 0.5 / 327_680 / 8, rel=1e-3)  # type: ignore[union-attr]
    after = world.state()
    assert after.kv_tokens.item() + after.kv_arriving_tokens.item() == pytest.approx(  # type: ignore[union-attr]
        before.context_tokens.item(), rel=1e-5
    )
    while world.state().phase.item() != Phase.DECODING:
        assert not world.step(to_server(1)(world.state())).handover.item()
    seconds = world.time_s().item() - before.time_s.item()
    assert seconds - 0.5 <= before.context_tokens.item() * 327_680 * 8 / 4e9 <= seconds


def alone(state: NetworkState) -> Decision:
    """Decode by the device itself."""
    whole = torch.zeros_like(state.server)
    return Decision(whole, whole + 1e5, state.power_max_w, whole + 4, whole + 2)


def test_device_alone_needs_no_memory(make_world: MakeWorld, one_task: Any, play_out: Any) -> None:
    played = play_out(crowd(make_world, one_task, 1200), alone)
    assert not played.stack("held_back").any()
    assert played.sum("kv_freed_tokens").sum() == 0
    assert played.sum("finished").sum() > 0


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (
            {"capacity_tokens": (5000, 5000)},
            "capacity_tokens has 2 entries but there are 1 servers",
        ),
        (
            {"capacity_tokens": (1099,), "admission": True},
            "may need 1100 tokens .* a server has 1099",
        ),
    ],
)
def test_memory_that_cannot_be_is_refused_in_one_line(
    make_world: MakeWorld, one_task: Any, memory: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        make_world(
            [[-90.0]],
            tasks=(one_task(1000, 100),),
            servers=("4xA40",),
            memory=MemoryConfig(**memory),
        )
    assert "\n" not in str(refusal.value)
