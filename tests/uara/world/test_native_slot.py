"""Compiled slots: those of torch to rounding, over whole episodes of random decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics, PhysicsConfig
from uara.serving.modes import MODE_INDEX
from uara.world.batteries import BatteryConfig
from uara.world.config import WorldConfig
from uara.world.memory import MemoryConfig
from uara.world.native_slot import knows_world
from uara.world.outages import OutageConfig
from uara.world.world import World

MakeWorld = Callable[..., World]


def reset(world: World, rows: list[bool], seed: int) -> None:
    """Start episodes in some networks."""
    keys = torch.arange(world.num_networks) + seed
    world.reset(torch.tensor(rows), torch.zeros(world.num_networks, dtype=torch.long), keys)


def anything(state: NetworkState, draw: torch.Generator) -> Decision:
    """Decide at random, also for idle devices: handovers, dead links, draft length 0."""
    shape = state.server.shape
    moves = (torch.rand(shape, generator=draw) < 0.2) | (state.server < 0)
    anew = torch.randint(state.num_servers, shape, generator=draw)
    return Decision(
        server=torch.where(moves, anew, state.server),
        bandwidth_hz=4e5 * torch.rand(shape, generator=draw) * (moves | (anew > 0)),
        power_w=state.power_max_w * torch.rand(shape, generator=draw),
        draft_length=torch.randint(0, 9, shape, generator=draw),
    )


def records(world: World) -> dict[str, Tensor]:
    """All that a slot changes: progress, and what controllers know."""
    state = world.state()
    known = {f.name: getattr(state, f.name) for f in fields(state)}
    found = {f"progress.{k}": v for k, v in world.progress.tensors().items()}
    return found | {f"state.{k}": v for k, v in known.items() if v is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], where: str) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-4, atol=tolerance(value), msg=f"{name}, {where}"
        )


def tolerance(value: Tensor) -> float:
    """A difference of large numbers is exact to a part of them, not of itself."""
    size = value.float()[torch.isfinite(value)].abs()
    return 1e-6 * (float(size.max()) if size.numel() else 1.0)


def brought(outcome: SlotOutcome) -> dict[str, Tensor]:
    """All that a slot brought, by name."""
    found = {f.name: getattr(outcome, f.name) for f in fields(outcome)}
    return {name: value for name, value in found.items() if value is not None}


def spread_gains(devices: int, servers: int) -> list[list[float]]:
    """Gains in dB from dead links to the best."""
    draw = torch.Generator().manual_seed(devices)
    return torch.empty(devices, servers).uniform_(-135, -85, generator=draw).tolist()


def small_batteries(world: World) -> None:
    """Leave the devices too little for an episode."""
    charge = world.progress.battery_j
    assert charge is not None
    draw = torch.Generator().manual_seed(2)
    world.progress.battery_j = 20 * torch.rand(charge.shape, generator=draw)


Played = tuple[SlotOutcome, dict[str, Tensor], SlotOutcome, dict[str, Tensor]]


def play_both(plain: World, fast: World, slots: int) -> Iterator[Played]:
    """Play slots from the same states: what torch brought and left, then what compiled code did."""
    assert fast.compile()
    draw = torch.Generator().manual_seed(1)
    for slot in range(slots):
        if slot == slots // 2:
            reset(plain, [False, True, False], seed=99)
        fast.load_state_dict(plain.state_dict())
        decision = anything(plain.state(), draw)
        theirs, ours = plain.step(decision), fast.step(decision)
        yield theirs, records(plain), ours, records(fast)


@pytest.mark.parametrize(
    ("devices", "servers", "options"),
    [
        (5, 3, {}),
        (33, 2, {}),
        (16, 1, {}),
        (60, 3, {}),
        (150, 3, {}),
        (7, 3, {"mode": "server_ar"}),
        (7, 3, {"link": {"interference": "reuse1"}}),
        (33, 3, {"link": {"interference": "reuse1"}}),
        (7, 3, {"link": {"interference": "reuse1"}, "mode": "server_ar"}),
    ],
)
def test_slots_are_those_of_torch(
    make_world: MakeWorld, devices: int, servers: int, options: dict[str, object]
) -> None:
    physics = Physics.of(PhysicsConfig.model_validate(options))
    gains = spread_gains(devices, servers)
    plain, fast = (make_world(gains, num=3, physics=physics, arrivals_per_s=0.15) for _ in range(2))
    reset(plain, [True] * 3, seed=devices)
    seen = {"finished": 0, "handover": 0, "starts": 0}
    before = plain.progress.active
    for slot, (theirs, left, ours, ours_left) in enumerate(play_both(plain, fast, 60)):
        assert_same(brought(ours), brought(theirs), f"slot {slot}")
        assert_same(ours_left, left, f"slot {slot}")
        seen["starts"] += int((plain.progress.active & ~before).sum())
        before = plain.progress.active
        for name in ("finished", "handover"):
            seen[name] += int(getattr(theirs, name).sum())
    assert seen["finished"] > 0
    assert seen["starts"] > 0
    assert seen["handover"] > 0 or servers == 1


def test_batteries_run_out_as_in_torch(make_world: MakeWorld) -> None:
    batteries = BatteryConfig(idle_power_w=0.2, failure_s=7.0)
    gains = spread_gains(9, 3)
    plain, fast = (
        make_world(gains, num=3, arrivals_per_s=0.15, batteries=batteries) for _ in range(2)
    )
    reset(plain, [True] * 3, seed=3)
    small_batteries(plain)
    failed = died = 0
    for slot, (theirs, left, ours, ours_left) in enumerate(play_both(plain, fast, 60)):
        assert_same(brought(ours), brought(theirs), f"slot {slot}")
        assert_same(ours_left, left, f"slot {slot}")
        assert theirs.failed is not None
        failed += int(theirs.failed.sum())
        died = int((left["progress.battery_j"] <= 0).sum())
    assert failed > 0
    assert 0 < died < 27


@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
def test_modulation_steps_are_those_of_torch(make_world: MakeWorld, interference: str) -> None:
    link = {"adaptation": "mcs", "interference": interference}
    physics = Physics.of(PhysicsConfig.model_validate({"link": link}))
    gains = spread_gains(20, 3)
    plain, fast = (
        make_world(gains, num=3, physics=physics, arrivals_per_s=0.15, batteries=BatteryConfig())
        for _ in range(2)
    )
    reset(plain, [True] * 3, seed=3)
    off = total = 0
    for theirs, left, ours, ours_left in play_both(plain, fast, 60):
        for mine, value in (
            *zip(brought(ours).values(), brought(theirs).values(), strict=True),
            *((ours_left[name], value) for name, value in left.items()),
        ):
            same = torch.isclose(mine, value, rtol=1e-4, atol=tolerance(value))
            off, total = off + int((~same).sum()), total + same.numel()
    # A table has steps: an SINR on the edge of one may fall to either side of it.
    assert off < 1e-4 * total


def test_episodes_bring_the_requests_of_torch(make_world: MakeWorld) -> None:
    plain, fast = (make_world(spread_gains(6, 2), num=3, arrivals_per_s=0.2) for _ in range(2))
    assert fast.compile()
    for world in (plain, fast):
        reset(world, [True, True, True], seed=5)
        reset(world, [False, True, False], seed=8)
    arrives = torch.isfinite(plain.requests.arrival_s)
    assert_same({"arrivals": fast.arrivals}, {"arrivals": plain.arrivals}, "both resets")
    for name, values in plain.requests.tensors().items():
        ours = getattr(fast.requests, name)
        assert_same({name: ours[arrives]}, {name: values[arrives]}, "both resets")


def test_requests_carried_along_are_those_of_the_table(make_world: MakeWorld) -> None:
    world = make_world([[-95.0, -105.0, -112.0]] * 9, num=2, arrivals_per_s=0.3)
    assert world.compile()
    reset(world, [True, True], seed=4)
    draw = torch.Generator().manual_seed(2)
    for _ in range(60):
        world.step(anything(world.state(), draw))
        now, state = world.progress, world.state()
        current = world.requests.current(now.finished, now.active)
        assert torch.equal(state.prompt_tokens, current["prompt_tokens"])
        assert torch.equal(state.task, current["task"])
        assert ((now.tokens <= current["output_tokens"]) | ~now.active).all()
    assert now.finished.max() > 0


def test_states_handed_out_do_not_change(make_world: MakeWorld) -> None:
    world = make_world([[-95.0, -105.0, -112.0]] * 9, num=2, arrivals_per_s=0.3)
    world.compile()
    reset(world, [True, True], seed=4)
    draw = torch.Generator().manual_seed(3)
    world.step(anything(world.state(), draw))
    handed_out = records(world)
    copies = {name: value.clone() for name, value in handed_out.items()}
    for _ in range(5):
        world.step(anything(world.state(), draw))
    reset(world, [True, False], seed=7)
    assert all(torch.equal(handed_out[name], copies[name]) for name in copies)
    assert any(not torch.equal(records(world)[name], copies[name]) for name in copies)


def test_decisions_with_modes_of_their_own_are_played_by_torch(make_world: MakeWorld) -> None:
    worlds = [make_world([[-95.0, -105.0, -112.0]] * 4, arrivals_per_s=0.3) for _ in range(2)]
    worlds[1].compile()
    outcomes = []
    for world in worlds:
        reset(world, [True], seed=1)
        draw, outcome = torch.Generator().manual_seed(5), None
        for slot in range(30):
            decision = anything(world.state(), draw)
            if slot == 29:
                mode = torch.full_like(decision.server, MODE_INDEX["device_only"])
                decision = Decision(**{**vars(decision), "mode": mode})
            outcome = world.step(decision)
        assert outcome is not None
        outcomes.append(outcome.tokens)
    torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("world", "physics"),
    [
        (WorldConfig(), PhysicsConfig(mode="psd")),
        (WorldConfig(outages=OutageConfig()), PhysicsConfig()),
        (WorldConfig(memory=MemoryConfig(admission=True)), PhysicsConfig()),
        (WorldConfig(memory=MemoryConfig(handover="transfer")), PhysicsConfig()),
        (WorldConfig(), PhysicsConfig(service="fluid")),
    ],
    ids=["mode", "outages", "admission", "transfer", "fluid"],
)
def test_worlds_with_more_are_left_to_torch(world: WorldConfig, physics: PhysicsConfig) -> None:
    assert knows_world(WorldConfig(), Physics.of(PhysicsConfig()))
    assert not knows_world(world, Physics.of(physics))
