"""The lower bound: never above the best decision, close to it, exact where nothing is shared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.control.allocation import AllocationConfig
from uara.control.load_costs import _chord, _least_of_mates
from uara.control.lower_bound import lower_bound_s
from uara.control.objective import total_remaining_s
from uara.control.oracle import OneSlotOracle
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]


def physics_of(mode: str, interference: str = "orthogonal", **more: object) -> Physics:
    link = LinkConfig(interference=interference)  # type: ignore[arg-type]
    return Physics.of(PhysicsConfig(mode=mode, link=link, **more))  # type: ignore[arg-type]


def tightness(state: NetworkState, physics: Physics, *, integral: bool = False) -> torch.Tensor:
    """Divide the bound by the oracle's value, of networks with a request."""
    best = OneSlotOracle(AllocationConfig(), physics).search(state).total_remaining_s.double()
    asked = state.has_request.any(1)
    return (lower_bound_s(state, physics, integral=integral) / best)[asked]


def random_networks(make_state: MakeState, seed: int, devices: int, servers: int) -> NetworkState:
    state = make_state(2, devices, servers, seed=seed, fresh=seed % 3 == 0)
    draw = torch.Generator().manual_seed(seed)
    waiting = torch.randint(3, (2, devices), generator=draw).float()
    foreign = torch.randint(3, (2, servers), generator=draw) * (seed % 2)
    return state.with_(
        waiting_requests=waiting,
        foreign_rows=foreign.float(),
        foreign_prefill_tokens=500.0 * foreign,
        uplink_bandwidth_hz=state.uplink_bandwidth_hz * (0.2 if seed % 5 == 0 else 1.0),
    )


BOUNDED = st.sampled_from(["sd", "server_ar"])
CASES = (st.integers(0, 100_000), st.integers(1, 5), st.integers(1, 3), BOUNDED)


@settings(max_examples=5)
@given(*CASES)
def test_the_bound_is_below_the_oracle(
    make_state: MakeState, seed: int, devices: int, servers: int, mode: str
) -> None:
    state = random_networks(make_state, seed, devices, servers)
    assert (tightness(state, physics_of(mode)) <= 1 + 1e-5).all()


@pytest.mark.slow
@settings(max_examples=120)
@given(*CASES, st.sampled_from(["orthogonal", "reuse1"]), st.booleans())
def test_the_bound_is_always_below_the_oracle(
    make_state: MakeState,
    seed: int,
    devices: int,
    servers: int,
    mode: str,
    interference: str,
    integral: bool,
) -> None:
    state = random_networks(make_state, seed, devices, servers)
    physics = physics_of(mode, interference)
    assert (tightness(state, physics, integral=integral) <= 1 + 1e-5).all()


@settings(max_examples=4)
@given(st.integers(0, 100_000), st.integers(2, 6))
def test_the_bound_is_below_random_decisions(
    make_state: MakeState, seed: int, devices: int
) -> None:
    physics = physics_of("sd")
    state = random_networks(make_state, seed, devices, 2)
    bound = lower_bound_s(state, physics)
    draw = torch.Generator().manual_seed(seed)
    wide = state.select(torch.arange(2).repeat_interleave(200))
    score = torch.rand(wide.gain.shape, generator=draw).masked_fill(~wide.reachable, -1.0)
    server = score.argmax(-1)
    weight = torch.rand(server.shape, generator=draw) ** 3 * wide.has_request
    total = torch.zeros(400, 2).scatter_add_(1, server, weight).gather(1, server)
    band_hz = wide.uplink_bandwidth_hz.gather(1, server)
    decision = Decision(
        server=server,
        bandwidth_hz=band_hz * weight / total.clamp_min(1e-12),
        power_w=wide.power_max_w,
        draft_length=torch.randint(9, server.shape, generator=draw),
    )
    value = total_remaining_s(wide, decision, physics).view(2, 200)
    assert (bound[:, None] <= value * (1 + 1e-5)).all()


@pytest.mark.parametrize(("mode", "least"), [("sd", 0.85), ("server_ar", 0.93)])
def test_the_bound_is_close_on_small_networks(
    make_state: MakeState, mode: str, least: float
) -> None:
    state = make_state(2, 5, 3, seed=3, fresh=True, reachable=True)
    assert tightness(state, physics_of(mode)).mean() > least


def test_the_bound_of_a_device_alone_is_its_best_prediction(make_state: MakeState) -> None:
    state = make_state(3, 1, 2, seed=5, fresh=True, reachable=True)
    found = tightness(state, physics_of("server_ar"))
    torch.testing.assert_close(found, torch.ones(3).double(), rtol=1e-4, atol=0)
    assert tightness(state, physics_of("sd")).min() > 0.97


def test_more_spectrum_and_faster_servers_lower_the_bound(make_state: MakeState) -> None:
    physics, state = physics_of("sd"), make_state(1, 4, 2, seed=8, fresh=True)
    bound = lower_bound_s(state, physics)
    wide = state.with_(uplink_bandwidth_hz=2 * state.uplink_bandwidth_hz)
    quick = state.with_(forward_fixed_s=0.5 * state.forward_fixed_s)
    assert (lower_bound_s(wide, physics) < bound).all()
    assert (lower_bound_s(quick, physics) < bound).all()


def test_a_network_without_requests_has_nothing_to_wait_for(make_state: MakeState) -> None:
    state = make_state(2, 3, 2, phase=Phase.IDLE)
    assert lower_bound_s(state, physics_of("sd")).tolist() == [0, 0]


def test_the_least_mates_are_others_in_reach() -> None:
    value = torch.tensor([4.0, 1.0, 3.0, 2.0])[:, None, None].expand(4, 2, 4)
    reach = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    found = _least_of_mates(value, reach)
    # everybody is in reach of server 0: one user has no mates, three have the two least others
    assert found[:, 0, 0].tolist() == [0, 0, 0, 0]
    assert found[:, 0, 2].tolist() == [1 + 2, 2 + 3, 1 + 2, 1 + 3]
    # the least device is out of reach of server 1
    assert found[[0, 2, 3], 1, 1].tolist() == [2, 2, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.05, 1))
def test_the_chord_is_below_the_chance_of_a_pass_in_progress(
    presence: list[float], cap: float
) -> None:
    x = torch.tensor(presence, dtype=torch.float64)
    slope = _chord(torch.tensor([[cap]], dtype=torch.float64), torch.tensor([float(len(x))]))
    assert float(slope * x.clamp(max=cap).sum()) <= float(1 - (1 - x).prod()) + 1e-9


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PhysicsConfig(mode="psd"), "not mode psd"),
        (PhysicsConfig(service="fluid"), "fluid service"),
        (PhysicsConfig(link=LinkConfig(adaptation="mcs")), "link.adaptation is mcs"),
    ],
)
def test_physics_without_a_proof_are_refused(
    make_state: MakeState, config: PhysicsConfig, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        lower_bound_s(make_state(1, 2, 2), Physics.of(config))
