"""Observations: each row belongs to its owner, tells nothing of others, stays in its bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from envs import Action, ControlConfig, EnvRecipe, ObservationSchema, observe, schema
from envs.observation import bounds
from tests.uara.decisions import physics_of
from uara.control.allocation import AllocationConfig, Allocator
from uara.errors import UserError
from uara.local_prediction import predict_locally, server_load
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig, predict
from uara.radio.link import LinkConfig

PHYSICS = Physics.of(PhysicsConfig())

DEVICE_FIELDS = (
    "phase", "task", "age_s", "waiting_requests", "prompt_tokens", "upload_bits", "tokens_so_far",
    "expected_remaining_tokens", "acceptance", "server", "kv_tokens", "draft_time_s",
    "draft_power_w", "power_max_w", "position_m",
)  # fmt: skip
SERVER_FIELDS = (
    "forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s",
    "server_power_w", "uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w", "rtt_s",
    "kv_free_tokens", "foreign_rows", "foreign_prefill_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def state(recipe: EnvRecipe) -> NetworkState:
    """A busy network: some devices idle, uploading, prefilling, decoding."""
    env = replace(recipe, control=ControlConfig(draft_length=3)).batched(4, seed=3)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(14):
        env.step(Action(server=torch.randint(3, (4, 5), generator=generator)))
    state = env.state
    assert state.has_request.any()
    assert not state.has_request.all()
    # Tag the servers, so that no two have the same broadcast.
    tag = torch.arange(3).expand(4, 3)
    return state.with_(foreign_rows=1.0 + tag, foreign_prefill_tokens=300.0 * tag, rtt_s=0.01 * tag)


def column(group: str, name: str) -> int:
    return [feature.name for feature in getattr(schema(), group)].index(name)


def permuted(state: NetworkState, devices: Tensor, servers: Tensor) -> NetworkState:
    inverse = servers.argsort()
    changes = {name: getattr(state, name)[:, devices] for name in DEVICE_FIELDS}
    changes |= {name: getattr(state, name)[:, servers] for name in SERVER_FIELDS}
    changes |= {k: getattr(state, k)[:, devices][:, :, servers] for k in ("gain", "reachable")}
    renamed = torch.where(changes["server"] >= 0, inverse[changes["server"]], -1)
    return state.with_(**{**changes, "server": renamed})


def test_permuting_devices_and_servers_permutes_rows(state: NetworkState) -> None:
    devices, servers = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 0, 1])
    before = observe(state, PHYSICS)
    after = observe(permuted(state, devices, servers), PHYSICS)
    torch.testing.assert_close(after.device, before.device[:, devices])
    torch.testing.assert_close(after.pair, before.pair[:, devices][:, :, servers])
    torch.testing.assert_close(after.server, before.server[:, servers])
    assert torch.equal(after.mask, before.mask[:, devices][:, :, servers])
    assert torch.equal(after.active, before.active[:, devices])


def test_each_cell_shows_the_quantity_of_its_own_device_and_server(state: NetworkState) -> None:
    seen = observe(state, PHYSICS)
    gain_db = 10 * torch.log10(state.gain)
    torch.testing.assert_close(seen.pair[..., column("pair", "gain_db")] * 20 - 100, gain_db)
    tokens = torch.where(state.has_request, state.prompt_tokens, 0.0)
    prompt = seen.device[..., column("device", "prompt_tokens")]
    torch.testing.assert_close(prompt * 1000, tokens)
    rtt = seen.server[..., column("server", "rtt_s")]
    torch.testing.assert_close(rtt * 0.1, state.rtt_s)
    for b in range(4):
        for e in range(3):
            on_it = [m for m in range(5) if state.has_request[b, m] and state.server[b, m] == e]
            count = float(seen.server[b, e, column("server", "requests")]) * 5
            assert count == pytest.approx(len(on_it))
            for m in range(5):
                assert bool(seen.pair[b, m, e, column("pair", "is_serving")]) == (m in on_it)


@pytest.mark.parametrize("name", ["acceptance", "draft_time_s", "age_s", "upload_bits", "gain"])
def test_private_quantity_of_a_device_is_seen_by_itself_alone(
    state: NetworkState, name: str
) -> None:
    device = int(state.has_request.all(0).int().argmax())
    assert state.has_request[:, device].any()
    changed = getattr(state, name).clone()
    changed[:, device] = changed[:, device] * 0.5 + 0.01 * (name != "gain")
    before = observe(state, PHYSICS)
    after = observe(state.with_(**{name: changed}), PHYSICS)
    others = [m for m in range(5) if m != device]
    assert torch.equal(after.device[:, others], before.device[:, others])
    assert torch.equal(after.pair[:, others], before.pair[:, others])
    assert torch.equal(after.server, before.server)
    own = torch.cat((before.device[:, device], before.pair[:, device].flatten(1)), -1)
    new = torch.cat((after.device[:, device], after.pair[:, device].flatten(1)), -1)
    assert not torch.equal(own, new)


def test_device_without_a_request_learns_nothing_of_its_next_one(state: NetworkState) -> None:
    idle = ~state.has_request
    changed = state.with_(
        prompt_tokens=torch.where(idle, 9000.0, state.prompt_tokens),
        expected_remaining_tokens=torch.where(idle, 500.0, state.expected_remaining_tokens),
        acceptance=torch.where(idle, 0.11, state.acceptance),
    )
    before, after = observe(state, PHYSICS), observe(changed, PHYSICS)
    for group in ("device", "pair", "server"):
        assert torch.equal(getattr(after, group), getattr(before, group)), group


def test_features_stay_in_their_bounds(state: NetworkState) -> None:
    extreme = state.with_(
        upload_bits=state.upload_bits + 1e15,
        age_s=state.age_s * 1e6,
        gain=state.gain * 1e-9,
        foreign_prefill_tokens=state.foreign_prefill_tokens + 1e12,
        kv_free_tokens=-state.kv_free_tokens,
    )
    seen = observe(extreme, PHYSICS)
    for group in ("device", "pair", "server"):
        low, high = bounds(group)  # type: ignore[arg-type]
        rows = getattr(seen, group)
        assert torch.isfinite(rows).all()
        assert ((rows >= low) & (rows <= high)).all()


def alone(state: NetworkState) -> NetworkState:
    """Leave the first device with a request alone in each network."""
    first = state.has_request & (state.has_request.long().cumsum(1) == 1)
    return state.with_(
        phase=torch.where(first, state.phase, 0),
        foreign_rows=torch.zeros_like(state.foreign_rows),
        foreign_prefill_tokens=torch.zeros_like(state.foreign_prefill_tokens),
    )


@pytest.mark.parametrize("mode", ["sd", "server_ar", "device_only"])
def test_local_times_of_a_device_that_is_alone_are_those_of_the_network(
    state: NetworkState, mode: str
) -> None:
    physics = Physics.of(PhysicsConfig(mode=mode))
    lonely = alone(state)
    who = lonely.has_request
    local = predict_locally(lonely, server_load(lonely), physics)
    length = 0 if mode == "server_ar" else 4
    allocator = Allocator(AllocationConfig(bandwidth="equal", draft_length=length), physics)
    for e in range(3):
        server = torch.full_like(lonely.phase, e)
        plan = predict(lonely, allocator.quick(lonely, server), physics, "request")
        torch.testing.assert_close(local.upload_s[..., e][who], plan.upload_s[who])
        torch.testing.assert_close(local.tpot_s[..., e][who], plan.tpot_s[who])
        ratio = local.remaining_s[..., e][who] / plan.remaining_s[who]
        assert ((ratio > 0.9) & (ratio < 1.1)).all()


def test_regret_is_the_time_lost_against_the_best_server_in_reach(state: NetworkState) -> None:
    local = predict_locally(state, server_load(state), PHYSICS)
    regret = observe(state, PHYSICS).pair[..., column("pair", "regret_s")]
    for b, m in state.has_request.nonzero().tolist():
        times, reach = local.remaining_s[b, m], state.reachable[b, m]
        best = min(float(times[e]) for e in range(3) if reach[e])
        for e in range(3):
            expected = max(float(times[e]) - best, 0.0)
            assert float(torch.expm1(3 * regret[b, m, e])) == pytest.approx(expected, abs=1e-3)


def test_joining_a_fuller_server_takes_longer(state: NetworkState) -> None:
    load = server_load(state)
    fuller = replace(load, requests=load.requests + 2, backlog_tokens=load.backlog_tokens + 4000)
    quiet, busy = predict_locally(state, load, PHYSICS), predict_locally(state, fuller, PHYSICS)
    assert (busy.tpot_s > quiet.tpot_s).all()
    assert (busy.remaining_s > quiet.remaining_s).all()
    assert (busy.inflicted_s >= quiet.inflicted_s).all()


def test_schema_survives_json_and_bad_ones_are_refused() -> None:
    assert ObservationSchema.from_dict(json.loads(json.dumps(schema().to_dict()))) == schema()
    with pytest.raises(UserError, match="checkpoint"):
        ObservationSchema.from_dict({"version": 1})


@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
@pytest.mark.parametrize("adaptation", ["shannon", "mcs"])
def test_every_link_model_can_be_observed(
    state: NetworkState, interference: str, adaptation: str
) -> None:
    link = LinkConfig.model_validate({"interference": interference, "adaptation": adaptation})
    seen = observe(state, Physics.of(PhysicsConfig(link=link)))
    low, high = bounds("pair")
    assert ((seen.pair >= low) & (seen.pair <= high)).all()
    own = observe(state, PHYSICS).pair
    efficiency = column("pair", "spectral_efficiency")
    if interference == "reuse1" and adaptation == "shannon":
        assert (seen.pair[..., efficiency] <= own[..., efficiency] + 1e-6).all()
        assert (seen.pair[..., efficiency] < own[..., efficiency] - 1e-3).any()


def test_a_neighbour_that_uploads_elsewhere_is_heard(state: NetworkState) -> None:
    link = LinkConfig(interference="reuse1")
    physics = Physics.of(PhysicsConfig(link=link))
    quiet = state.with_(
        phase=torch.full_like(state.phase, 3), server=torch.zeros_like(state.server)
    )
    server, phase = quiet.server.clone(), quiet.phase.clone()
    server[:, 0] = 1
    decodes = predict_locally(quiet.with_(server=server), server_load(quiet), physics)
    phase[:, 0] = 1
    uploads = predict_locally(quiet.with_(server=server, phase=phase), server_load(quiet), physics)
    others = slice(1, None)
    at_zero = uploads.spectral_efficiency[:, others, 0], decodes.spectral_efficiency[:, others, 0]
    assert (at_zero[0] <= at_zero[1]).all()
    assert (at_zero[0] < at_zero[1]).any()
    # Nobody disturbs a server of its own, and no device itself.
    torch.testing.assert_close(
        uploads.spectral_efficiency[:, others, 1], decodes.spectral_efficiency[:, others, 1]
    )
    torch.testing.assert_close(uploads.spectral_efficiency[:, 0], decodes.spectral_efficiency[:, 0])


@pytest.mark.parametrize("service", ["batched", "fluid"])
@pytest.mark.parametrize("mode", ["sd", "psd", "async", "auto"])
def test_every_mode_and_service_can_be_observed(
    state: NetworkState, mode: str, service: str
) -> None:
    seen = observe(state, physics_of(mode=mode, service=service, window=2))
    shapes = {"device": (4, 5), "pair": (4, 5, 3), "server": (4, 3)}
    for group, shape in shapes.items():
        rows, (low, high) = getattr(seen, group), bounds(group)  # type: ignore[arg-type]
        assert rows.shape == (*shape, len(getattr(schema(), group)))
        assert torch.isfinite(rows).all()
        assert ((rows >= low) & (rows <= high)).all()
    tpot_s = seen.pair[..., column("pair", "tpot_s")]
    assert (tpot_s[seen.active] > 0).all()
    assert (tpot_s[~seen.active] == 0).all()
    # A device does not know how a fluid server divides itself, and reckons with batches.
    batched = observe(state, physics_of(mode=mode, window=2))
    assert torch.equal(seen.pair, batched.pair)


def test_a_device_reckons_in_auto_with_the_fastest_mode_of_each_server(state: NetworkState) -> None:
    load = server_load(state)
    auto, *others = (
        predict_locally(state, load, physics_of(mode=mode)).tpot_s
        for mode in ("auto", "sd", "psd", "async")
    )
    best = torch.stack(others).amin(0)
    assert (auto <= best * (1 + 1e-5)).all()
    assert all((other > auto * 1.01).any() for other in others)
