"""The world over whole episodes: its outcome is the prediction, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from tests.uara.world.episodes import GAIN_DB, Episode, constant, play, same, start, wandering
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, PhysicsConfig, predict
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.serving.modes import MODE_INDEX
from uara.world.config import WorldConfig
from uara.world.requests import TaskType
from uara.world.world import World

MakeWorld = Callable[..., World]
OneTask = Callable[[int, int, float], TaskType]


@pytest.fixture(scope="module")
def wandered(make_world: MakeWorld) -> tuple[World, Episode]:
    """An episode of four networks under random decisions."""
    world = start(make_world(GAIN_DB, num=4, arrivals_per_s=0.25), 1, 2, 3, 4)
    return world, play(world, wandering(0))


# What happens on a static network is what was predicted.


@pytest.mark.parametrize("attachment_bits", [0.0, 1e6, 8e6])
@pytest.mark.parametrize(("rack", "length"), [("4xA100-40GB", 4), ("4xA40", 0), ("4xL40S", 8)])
def test_answer_on_a_static_network_takes_the_predicted_time(
    make_world: MakeWorld, one_task: OneTask, attachment_bits: float, rack: str, length: int
) -> None:
    task = one_task(1500, 96, attachment_bits)
    world = make_world([[-110.0]], tasks=[task], servers=(rack,))
    start(world, 1)
    episode = play(world, lambda state: constant(state, length=length))
    began = [bool((s.has_request & (s.server < 0)).any()) for s in episode.states]
    state = episode.states[began.index(True)]
    plan = predict(state, constant(state, length=length), world.physics)
    predicted_s = state.age_s + plan.upload_s + plan.prefill_s + 96 * plan.tpot_s
    finished = next(outcome for outcome in episode.outcomes if outcome.finished.any())
    assert finished.e2e_s.item() == pytest.approx(predicted_s.item(), rel=1e-3)
    first_s = state.age_s + plan.upload_s + plan.prefill_s + plan.round_s
    assert finished.ttft_s.item() == pytest.approx(first_s.item(), rel=1e-3)


def test_device_alone_answers_in_the_time_of_drafting(
    make_world: MakeWorld, one_task: OneTask
) -> None:
    world = start(make_world([[-140.0]], tasks=[one_task(1500, 96, 8e6)]), 1)

    def alone(state: NetworkState) -> Decision:
        local = torch.full_like(state.server, MODE_INDEX["device_only"])
        plain = constant(state)
        return Decision(plain.server, plain.bandwidth_hz, plain.power_w, plain.draft_length, local)

    episode = play(world, alone)
    draft_s = episode.states[0].draft_time_s.item()
    waited = [
        s.age_s.item() for s in episode.states if s.has_request.any() and s.tokens_so_far == 0
    ]
    finished = [outcome for outcome in episode.outcomes if outcome.finished.any()]
    assert finished[0].e2e_s.item() == pytest.approx(waited[0] + 96 * draft_s, rel=1e-4)
    assert episode.stack("uplink_bits").sum() == 0
    assert episode.stack("server_energy_j").sum() == 0


# Nothing is lost, nothing is made.


def test_no_request_is_lost(wandered: tuple[World, Episode]) -> None:
    world, episode = wandered
    drawn = torch.isfinite(world.requests.arrival_s).sum(2)
    assert drawn.sum() > 30
    assert torch.equal(episode.stack("finished").sum(0), drawn)


def test_answers_have_the_drawn_lengths_in_order(wandered: tuple[World, Episode]) -> None:
    world, episode = wandered
    finished, tokens = episode.stack("finished"), episode.stack("tokens")
    for network, device in np.ndindex(4, 3):
        ends = finished[:, network, device].nonzero()[:, 0]
        drawn = world.requests.output_tokens[network, device, : len(ends)]
        assert torch.equal(episode.stack("finished_tokens")[ends, network, device], drawn)
        assert torch.equal(
            episode.stack("finished_task")[ends, network, device],
            world.requests.task[network, device, : len(ends)],
        )
        committed = tokens[:, network, device].double().cumsum(0)[ends]
        torch.testing.assert_close(committed, drawn.double().cumsum(0), rtol=1e-5, atol=1e-3)
        assert tokens[:, network, device].sum() == pytest.approx(drawn.sum().item(), rel=1e-5)


def test_time_alive_adds_up_to_the_latencies(wandered: tuple[World, Episode]) -> None:
    _, episode = wandered
    alive_s, e2e_s = episode.stack("alive_s").double(), episode.stack("e2e_s").double()
    assert episode.stack("handover").sum() > 20
    torch.testing.assert_close(alive_s.sum(0), e2e_s.sum((0, 2)), rtol=1e-5, atol=1e-3)


def test_answers_end_inside_their_slot_and_after_their_first_token(
    wandered: tuple[World, Episode],
) -> None:
    world, episode = wandered
    finished = episode.stack("finished")
    index = (finished.cumsum(0) - finished.long()).clamp(max=world.requests.task.shape[2] - 1)
    arrival_s = world.requests.arrival_s.gather(2, index.permute(1, 2, 0)).permute(2, 0, 1)
    start_s = 0.5 * torch.arange(len(finished))[:, None, None]
    end_s = (arrival_s + episode.stack("e2e_s")) - start_s
    assert (end_s[finished] > -1e-3).all()
    assert (end_s[finished] < 0.5 + 1e-3).all()
    ttft_s, e2e_s = episode.stack("ttft_s")[finished], episode.stack("e2e_s")[finished]
    assert (ttft_s > 0).all()
    assert (ttft_s <= e2e_s).all()


def test_uplink_carries_the_prompt_once_and_a_draft_per_round(
    make_world: MakeWorld, one_task: OneTask
) -> None:
    # Every answer has 96 tokens at one acceptance, so every request has the same bits.
    world = make_world(GAIN_DB, tasks=[one_task(1500, 96, 2e6)], acceptance_std=0.0, num=2)
    start(world, 5, 6)
    episode = play(world, wandering(1, length=4))
    codec = world.physics.codec
    rounds = 96 / sum(0.7**k for k in range(5))
    per_request = codec.prompt_bits(1500.0) + 2e6 + rounds * codec.draft_bits(4.0)
    requests = episode.stack("finished").sum(0)
    assert episode.stack("handover").any()
    assert requests.sum() > 5
    torch.testing.assert_close(
        episode.stack("uplink_bits").sum(0), requests * per_request, rtol=1e-4, atol=1.0
    )
    verdict_bits = codec.verdict_bits(4.0, 0.7)
    torch.testing.assert_close(
        episode.stack("downlink_bits").sum(0), requests * rounds * verdict_bits, rtol=1e-4, atol=1.0
    )


def test_slot_never_brings_what_cannot_be(wandered: tuple[World, Episode]) -> None:
    _, episode = wandered
    active = torch.stack([state.has_request for state in episode.states])
    for name in ("tokens", "uplink_bits", "downlink_bits", "e2e_s"):
        values = episode.stack(name)
        assert torch.isfinite(values).all()
        assert (values >= 0).all()
        assert (values[~active] == 0).all()
    energy_j = episode.stack("device_energy_j")
    assert (energy_j >= 0).all()
    assert (energy_j[~active] == 0).all()
    # Half a second at full power is the most that a slot takes.
    power_w = episode.states[0].server_power_w
    assert (episode.stack("server_energy_j") <= 0.5 * power_w * (1 + 1e-6)).all()


# Requests, servers and caches.


def test_new_requests_have_no_server_and_no_cache(wandered: tuple[World, Episode]) -> None:
    _, episode = wandered
    was_active = torch.zeros(4, 3, dtype=torch.bool)
    for state, outcome in zip(episode.states, episode.outcomes, strict=True):
        is_new = state.has_request & ~was_active
        assert (state.server[is_new] == -1).all()
        assert (state.kv_tokens[is_new] == 0).all()
        assert (state.tokens_so_far[is_new] == 0).all()
        assert (state.upload_bits[is_new] > 0).all()
        assert (state.server[state.has_request & ~is_new] >= 0).all()
        was_active = state.has_request & ~outcome.finished


def test_handover_in_the_middle_prefills_the_context_anew(
    make_world: MakeWorld, one_task: OneTask
) -> None:
    world = make_world([[-95.0, -95.0]], tasks=[one_task(2000, 200, 0.0)], servers=("4xL40S",) * 2)
    start(world, 1)

    def run(server: int, until: Callable[[NetworkState], bool]) -> NetworkState:
        for _ in range(200):
            state = world.state(true=True)
            if until(state):
                return state
            world.step(constant(state, server=server))
        raise AssertionError("never came there")

    before = run(0, lambda state: bool((state.tokens_so_far > 50).any()))
    assert before.phase.item() == Phase.DECODING
    assert before.kv_tokens.item() == pytest.approx(before.context_tokens.item())
    move = constant(before, server=1)
    need_s = predict(before, move, world.physics).prefill_s.item()
    assert need_s == pytest.approx(before.context_tokens.item() * 0.24e-3, rel=0.01)
    outcome = world.step(move)
    after = world.state(true=True)
    assert outcome.handover.item()
    assert after.server.item() == 1
    assert after.tokens_so_far >= before.tokens_so_far
    assert after.upload_bits.item() == 0
    if need_s > 0.5:
        assert outcome.tokens.item() == 0
        assert after.phase.item() == Phase.PREFILLING
    resumed = run(1, lambda state: state.phase.item() == Phase.DECODING)
    assert resumed.kv_tokens.item() == pytest.approx(resumed.context_tokens.item())
    assert not world.step(constant(resumed, server=1)).handover.item()


def test_requests_do_not_depend_on_decisions_nor_on_the_batch(make_world: MakeWorld) -> None:
    batch = start(make_world(GAIN_DB, num=3, arrivals_per_s=0.15), 9, 4, 7)
    alone = start(make_world(GAIN_DB, num=1, arrivals_per_s=0.15), 4)
    wandered, settled = play(batch, wandering(3)), play(alone, constant)
    for name, drawn in alone.requests.tensors().items():
        assert torch.equal(getattr(batch.requests, name)[1], drawn[0]), name
    assert torch.equal(
        wandered.stack("finished_tokens").sum(0)[1], settled.stack("finished_tokens").sum(0)[0]
    )


def test_batched_networks_play_as_each_would_alone(make_world: MakeWorld) -> None:
    batch = start(make_world(GAIN_DB, num=2, arrivals_per_s=0.15), 9, 4)
    alone = start(make_world(GAIN_DB, num=1, arrivals_per_s=0.15), 4)
    for _ in range(60):
        together, single = batch.step(constant(batch.state())), alone.step(constant(alone.state()))
        torch.testing.assert_close(together.tokens[1:], single.tokens)
        torch.testing.assert_close(together.alive_s[1:], single.alive_s)


# What a slot brings in each mode.


ALL_MODES = ("sd", "server_ar", "device_only", "psd", "async")


@pytest.mark.parametrize("mode", ALL_MODES)
def test_offered_work_is_what_rounds_of_the_mode_bring(
    make_world: MakeWorld, one_task: OneTask, mode: str
) -> None:
    physics = Physics.of(PhysicsConfig(mode=mode))
    world = make_world(
        [[-90.0]], tasks=[one_task(200, 4000, 0.0)], arrivals_per_s=0.5, physics=physics,
        servers=("4xA40",),
    )  # fmt: skip
    start(world, 1)
    while world.state().phase.item() != Phase.DECODING and world.state().tokens_so_far < 1:
        world.step(constant(world.state(), length=3))
    state = world.state(true=True)
    plan = predict(state, constant(state, length=3), physics)
    rounds = 0.5 / plan.round_s.item()
    alpha = state.acceptance.item()
    rejected = 1 - alpha**3
    per_round = {
        "sd": 4,
        "server_ar": 1,
        "device_only": 0,
        # Between two rejections 1 pass with one token, then 1 / (1 - a^3) with three each on
        # average, if the first token was right.
        "psd": (1 + 3 * alpha / rejected) / (1 + alpha / rejected),
        # A verdict: the first token was right, or a correction is forwarded alone, or both.
        "async": 3 * alpha + rejected,
    }[mode]
    work_s = world.offered_work_s(constant(state, length=3)).item()
    expected_s = rounds * per_round * state.forward_per_token_s.item()
    assert work_s == pytest.approx(expected_s, rel=0.02, abs=1e-12)


@pytest.mark.parametrize("mode", ["sd", "async"])
def test_world_of_fluid_servers_answers_every_request(make_world: MakeWorld, mode: str) -> None:
    physics = Physics.of(PhysicsConfig(service="fluid", mode=mode))
    world = start(make_world(GAIN_DB, num=2, arrivals_per_s=0.25, physics=physics), 1, 2)
    episode = play(world, wandering(0))
    drawn = torch.isfinite(world.requests.arrival_s).sum(2)
    assert torch.equal(episode.stack("finished").sum(0), drawn)
    power_w = world.state().server_power_w
    assert (episode.stack("server_energy_j") <= 0.5 * power_w * (1 + 1e-5)).all()


# Resets, ends and refusals.


def test_reset_touches_only_the_masked_networks(make_world: MakeWorld) -> None:
    world = start(make_world(GAIN_DB, num=3, arrivals_per_s=0.3), 1, 2, 3)
    untouched = start(make_world(GAIN_DB, num=3, arrivals_per_s=0.3), 1, 2, 3)
    for _ in range(10):
        world.step(constant(world.state()))
        untouched.step(constant(untouched.state()))
    held = world.state()
    found = {field.name: getattr(held, field.name) for field in fields(NetworkState)}
    copies = {name: tensor.clone() for name, tensor in found.items() if tensor is not None}
    one = torch.tensor([False, True, False])
    world.reset(one, torch.zeros(3, dtype=torch.long), torch.tensor([70, 80, 90]))
    for name, tensor in copies.items():
        assert torch.equal(getattr(held, name), tensor), f"an earlier state changed its {name}"
    before, after = untouched.state_dict(), world.state_dict()
    for name in before:
        assert torch.equal(before[name][[0, 2]], after[name][[0, 2]]), name
    fresh = start(make_world(GAIN_DB, num=1, arrivals_per_s=0.3), 80)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(after[name][[1]], tensor), name
    for _ in range(20):
        world_slot, fresh_slot = (w.step(constant(w.state())) for w in (world, fresh))
        torch.testing.assert_close(world_slot.alive_s[[1]], fresh_slot.alive_s)


def test_world_goes_on_from_a_saved_state(make_world: MakeWorld) -> None:
    world, other = (start(make_world(GAIN_DB, num=2, arrivals_per_s=0.3), 1, 2) for _ in range(2))
    for _ in range(15):
        world.step(constant(world.state()))
    other.load_state_dict(world.state_dict())
    for _ in range(20):
        here, there = (w.step(constant(w.state())) for w in (world, other))
        for field in fields(SlotOutcome):
            assert same(getattr(here, field.name), getattr(there, field.name)), field.name


def test_saved_state_of_another_size_is_refused(make_world: MakeWorld) -> None:
    saved = make_world(GAIN_DB, num=2).state_dict()
    with pytest.raises(UserError, match="3 networks, 3 devices"):
        make_world(GAIN_DB, num=3).load_state_dict(saved)


def test_network_is_drained_when_nothing_is_left_and_nothing_comes(make_world: MakeWorld) -> None:
    world = start(make_world(GAIN_DB, num=2, arrivals_per_s=0.15), 3, 4)
    left = torch.isfinite(world.requests.arrival_s).sum((1, 2))
    for slot in range(400):
        outcome = world.step(constant(world.state()))
        left -= outcome.finished.sum(1)
        assert torch.equal(outcome.drained, (left == 0) & (slot + 1 >= 40))
        if outcome.drained.all():
            assert slot + 1 >= 40
            return
    raise AssertionError("the episode did not end")


def test_deserted_network_is_drained_at_the_end_of_the_horizon(make_world: MakeWorld) -> None:
    world = start(make_world(GAIN_DB, arrivals_per_s=1e-9), 1)
    assert len(play(world, constant).outcomes) == 40


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"servers": ("4xA40",) * 2}, "bank has 3 servers but the config names 2"),
        ({"horizon_slots": 41}, "horizon_slots is 41 but the bank has 40 slots"),
        ({"slot_s": 0.25}, "slot_s is 0.25 but the bank's slots last 0.5"),
        ({"servers": ("4xA40", "4xA40", "abacus")}, "server 'abacus' is unknown"),
        ({"devices": ("slide-rule",)}, "device 'slide-rule' is unknown"),
    ],
)
def test_config_that_does_not_fit_is_refused_in_one_line(
    make_world: MakeWorld, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        make_world(GAIN_DB, **change)
    assert "\n" not in str(refusal.value)


def test_task_without_measured_acceptance_is_refused(make_world: MakeWorld) -> None:
    world = make_world(GAIN_DB)
    rates = {world.physics.codec.rule: {"chat": TaskAcceptance(0.7, 0.1)}}
    with pytest.raises(UserError, match="acceptance of task 'summarise' was not measured"):
        World(world.config, world.physics, world.bank, AcceptanceTable("p", 0.7, rates), 1)


def test_default_config_is_the_meaningful_regime() -> None:
    config = WorldConfig()
    assert config.power_max_dbm == 23.0
    assert config.slot_s == 0.5
    assert any(task.attachment_bits == 8e6 for task in config.requests.tasks)
