"""What holds whatever is in the world: nothing is lost, nothing made, names do not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import predict
from uara.serving.modes import MODE_INDEX
from uara.world.acceptance import ConstantAcceptance, MarkovAcceptance, PositionalAcceptance
from uara.world.arrivals import BurstConfig
from uara.world.batteries import BatteryConfig
from uara.world.conversations import ConversationConfig
from uara.world.memory import MemoryConfig
from uara.world.outages import OutageConfig
from uara.world.requests import RequestConfig
from uara.world.tasks import TaskType
from uara.world.world import World

MakeWorld = Callable[..., World]
GAIN_DB = [[-95.0, -105.0], [-108.0, -98.0], [-101.0, -99.0]]
RACKS = ("4xL40S", "4xA40")


def task(name: str = "only", attachment_bits: float = 0.0) -> TaskType:
    return TaskType(
        name=name, weight=1.0, attachment_bits=attachment_bits,
        prompt_tokens_min=200, prompt_tokens_mean=600, prompt_tokens_max=1500,
        output_tokens_min=16, output_tokens_mean=60, output_tokens_max=150,
    )  # fmt: skip


def restless(seed: int) -> Callable[[NetworkState], Decision]:
    """Move, change power and draft length, and decode by the device alone, all at random."""
    draw = torch.Generator().manual_seed(seed)

    def decide(state: NetworkState) -> Decision:
        shape = state.server.shape
        moves = torch.rand(shape, generator=draw) < 0.15
        anew = torch.randint(state.num_servers, shape, generator=draw)
        alone = torch.rand(shape, generator=draw) < 0.1
        return Decision(
            server=torch.where(moves | (state.server < 0), anew, state.server),
            bandwidth_hz=3e5 * torch.rand(shape, generator=draw) + 1e5,
            power_w=state.power_max_w * torch.rand(shape, generator=draw),
            draft_length=torch.randint(1, 9, shape, generator=draw),
            mode=torch.where(alone, MODE_INDEX["device_only"], MODE_INDEX["sd"]),
        )

    return decide


worlds = st.fixed_dictionaries(
    {
        "batteries": st.sampled_from([None, BatteryConfig(charge_min=0.0002, charge_max=0.002)]),
        "outages": st.sampled_from([None, OutageConfig(every_s=8.0, duration_s=3.0)]),
        "memory": st.builds(
            MemoryConfig,
            admission=st.booleans(),
            handover=st.sampled_from(["prefill", "transfer"]),
            capacity_tokens=st.just((3200, 5000)),
        ),
    }
)
asked = st.fixed_dictionaries(
    {
        "bursts": st.sampled_from([None, BurstConfig()]),
        "conversations": st.sampled_from([None, ConversationConfig(max_context_tokens=3000)]),
        "acceptance": st.sampled_from(
            [ConstantAcceptance(), MarkovAcceptance(), PositionalAcceptance()]
        ),
    }
)


@given(worlds, asked, st.integers(0, 1000))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tokens_bytes_joules_and_requests_are_conserved(
    make_world: MakeWorld, play_out: Any, world: dict[str, Any], asks: dict[str, Any], seed: int
) -> None:
    requests = RequestConfig(arrivals_per_s=0.15, tasks=(task(),), **asks)
    built = make_world(
        GAIN_DB, slots=24, tasks=requests.tasks, requests=requests, servers=RACKS, **world
    )
    played = play_out(built, restless(seed), seed)
    finished = played.stack("finished")[:, 0]
    drawn = torch.isfinite(built.requests.arrival_s).sum(2)[0]
    failed = played.sum("failed")[0] if world["batteries"] else torch.zeros(3)
    assert torch.equal(finished.sum(0) + failed, drawn.double())
    # an answer's tokens come in its slots, however often it moved
    length = built.requests.output_tokens[0]
    for device in range(3):
        count = int(finished[:, device].sum())
        if failed[device] == 0:
            brought = played.sum("tokens")[0, device].item()
            assert brought == pytest.approx(length[device, :count].sum().item(), rel=1e-4)
    # a prompt is sent at most once, new parts alone
    table = built.requests
    history = torch.zeros_like(length) if table.history_tokens is None else table.history_tokens[0]
    bits = built.physics.codec.prompt_bits(table.prompt_tokens[0] - history)
    sent_at_most = (bits * torch.isfinite(table.arrival_s[0])).sum(1)
    drafts = 9 * built.physics.codec.draft_bits(8.0) * length.sum(1)
    assert (played.sum("uplink_bits")[0] <= sent_at_most + drafts).all()
    if built.progress.battery_j is not None:
        spent = played.sum("device_energy_j") + built.progress.battery_j
        torch.testing.assert_close(spent, played.states[0].battery_j.double(), rtol=1e-4, atol=1e-2)
    if built.config.memory.admission:
        for state in played.states:
            assert (state.kv_free_tokens >= -1e-2).all()
    if world["batteries"] is None:
        torch.testing.assert_close(
            played.sum("alive_s"), played.sum("e2e_s").sum(1), rtol=1e-4, atol=1e-2
        )


def permuted(record: Any, order: Tensor, names: set[str]) -> dict[str, Tensor]:
    """Reorder the device axis of a record's tensors."""
    found = {f.name: getattr(record, f.name) for f in fields(record)}
    return {
        name: value[:, order] if name in names else value
        for name, value in found.items()
        if value is not None
    }


BY_SERVER = {"alive_s", "server_energy_j", "drained", "kv_freed_tokens"}


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_other_names_of_devices_give_the_same_outcomes_under_other_names(
    make_world: MakeWorld, order: tuple[int, ...]
) -> None:
    phones = ("snapdragon-8-gen-3", "snapdragon-8-gen-1", "iphone-14")
    requests = RequestConfig(
        arrivals_per_s=0.2, tasks=(task(),), conversations=ConversationConfig(),
        acceptance=MarkovAcceptance(),
    )  # fmt: skip

    def build(by: list[int]) -> World:
        world = make_world(
            np.array(GAIN_DB)[by], slots=40, tasks=requests.tasks, requests=requests,
            servers=RACKS, devices=tuple(phones[i] for i in by), outages=OutageConfig(every_s=10.0),
            batteries=BatteryConfig(charge_min=0.001, charge_max=0.005),
            memory=MemoryConfig(handover="transfer"),
        )  # fmt: skip
        world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([12]))
        return world

    index = torch.tensor(order)
    here, there = build([0, 1, 2]), build(list(order))
    for name, values in here.requests.tensors().items():
        getattr(there.requests, name).copy_(values[:, index])
    there.arrivals, there.waiting_s = there._count_by_slot(there.requests)
    assert here.progress.battery_j is not None
    there.progress.battery_j = here.progress.battery_j[:, index].clone()
    there._forget()
    decide = restless(5)
    names = {f.name for f in fields(SlotOutcome)} - BY_SERVER
    finished = 0
    for _ in range(70):
        decision = decide(here.state())
        moved = Decision(**permuted(decision, index, {f.name for f in fields(Decision)}))
        ours, theirs = here.step(decision), there.step(moved)
        finished += int(ours.finished.sum())
        for name, value in permuted(ours, index, names).items():
            torch.testing.assert_close(getattr(theirs, name), value, rtol=1e-3, atol=1e-3, msg=name)
    assert finished > 5


@pytest.fixture
def full_world(make_world: MakeWorld) -> Callable[[int], World]:
    """Make worlds in which everything may happen."""

    def make(num: int) -> World:
        requests = RequestConfig(
            arrivals_per_s=0.2, tasks=(task(),), bursts=BurstConfig(),
            conversations=ConversationConfig(max_context_tokens=3000),
            acceptance=MarkovAcceptance(), acceptance_drift=0.1, output_drift=0.3,
        )  # fmt: skip
        return make_world(
            GAIN_DB, num=num, slots=40, tasks=requests.tasks, requests=requests, servers=RACKS,
            outages=OutageConfig(every_s=10.0), batteries=BatteryConfig(charge_min=0.001),
            memory=MemoryConfig(
                admission=True, handover="transfer", capacity_tokens=(3200, 5000)
            ),
        )  # fmt: skip

    return make


def begin(world: World, keys: list[int], mask: list[bool] | None = None) -> None:
    rows = torch.ones(len(keys), dtype=torch.bool) if mask is None else torch.tensor(mask)
    world.reset(rows, torch.zeros(len(keys)).long(), torch.tensor(keys))


def outcomes_of(world: World, decide: Callable[[NetworkState], Decision], slots: int) -> list[Any]:
    found = []
    for _ in range(slots):
        outcome = world.step(decide(world.state()))
        found.append({f.name: getattr(outcome, f.name) for f in fields(outcome)})
    return found


def test_full_world_goes_on_from_a_saved_state(full_world: Callable[[int], World]) -> None:
    world, other = full_world(2), full_world(2)
    begin(world, [1, 2])
    begin(other, [8, 9])
    outcomes_of(world, restless(0), 25)
    other.load_state_dict(world.state_dict())
    here, there = (outcomes_of(w, restless(1), 25) for w in (world, other))
    for ours, theirs in zip(here, there, strict=True):
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name


def test_full_world_starts_anew_where_it_is_told_to(full_world: Callable[[int], World]) -> None:
    world, fresh = full_world(2), full_world(2)
    begin(world, [1, 2])
    outcomes_of(world, restless(0), 25)
    kept = {name: value[[1]] for name, value in world.state_dict().items()}
    begin(world, [5, 0], [True, False])
    begin(fresh, [5, 0])
    for name, value in world.state_dict().items():
        assert torch.equal(value[[0]], fresh.state_dict()[name][[0]]), name
        assert torch.equal(value[[1]], kept[name]), name


@pytest.mark.parametrize("length", [0, 5])
def test_moved_cache_costs_the_predicted_time(
    make_world: MakeWorld, one_task: Any, to_server: Any, length: int
) -> None:
    world = make_world(
        [[-90.0, -90.0]], tasks=(one_task(1500, 300),), arrivals_per_s=0.3,
        servers=("4xL40S", "4xRTXA6000"), memory=MemoryConfig(handover="transfer"), slots=80,
    )  # fmt: skip
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([3]))
    while not (world.state().tokens_so_far > 30).any():
        world.step(to_server(0, length=length)(world.state()))
    state, decide = world.state(true=True), to_server(1, length=length)
    plan = predict(state, decide(state), world.physics)
    # 327,680 bytes a token at 10 Gbit/s, and nothing to read
    moved_s = state.context_tokens.item() * 327_680 * 8 / 10e9
    assert plan.prefill_s.item() == pytest.approx(moved_s, rel=1e-4)
    rest = world.requests.output_tokens[0, 0, 0] - state.tokens_so_far.item()
    expected_s = state.age_s.item() + moved_s + rest.item() * plan.tpot_s.item()
    for _ in range(200):
        outcome = world.step(decide(world.state()))
        if outcome.finished.item():
            # the passes get longer as the context grows
            assert outcome.e2e_s.item() == pytest.approx(expected_s, rel=2e-3)
            return
    raise AssertionError("the answer did not end")


def test_answer_that_ends_in_the_slot_of_its_move_includes_the_move(
    make_world: MakeWorld, one_task: Any, to_server: Any
) -> None:
    world = make_world(
        [[-90.0, -90.0]], tasks=(one_task(500, 300),), arrivals_per_s=0.3,
        servers=("4xL40S", "4xL40S"), memory=MemoryConfig(handover="transfer"), slots=80,
    )  # fmt: skip
    world.reset(torch.ones(1, dtype=torch.bool), torch.zeros(1).long(), torch.tensor([3]))
    while not (world.state().tokens_so_far > 30).any():
        world.step(to_server(0)(world.state()))
    world.requests.output_tokens[0, 0, 0] = world.state().tokens_so_far.item() + 2
    world._forget()
    state, decide = world.state(true=True), to_server(1)
    moved_s = state.context_tokens.item() * 327_680 * 8 / 10e9
    plan = predict(state, decide(state), world.physics)
    outcome = world.step(decide(state))
    assert outcome.finished.item()
    expected_s = state.age_s.item() + moved_s + 2 * plan.tpot_s.item()
    assert outcome.e2e_s.item() == pytest.approx(expected_s, rel=1e-4)
    # those that were there already, and those that came in the slot, are alive to its end
    end_s = state.time_s.item() + 0.5
    left_s = end_s - world.requests.arrival_s
    new_s = left_s[(left_s > 0) & (left_s < 0.5)].sum().item()
    others_s = 0.5 * state.waiting_requests.sum().item() + new_s
    spent_s = moved_s + 2 * plan.tpot_s.item()
    assert outcome.alive_s.item() == pytest.approx(others_s + spent_s, rel=1e-4)
