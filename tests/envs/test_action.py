"""Actions become decisions that keep every budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from envs import Action, ControlConfig, EnvRecipe
from envs.action import to_decision
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

PHYSICS = Physics.of(PhysicsConfig())
ALL = ControlConfig(
    association="learned", bandwidth="learned", power="learned", draft_length="learned"
)


@pytest.fixture(scope="module")
def state(recipe: EnvRecipe) -> NetworkState:
    env = recipe.batched(3, seed=2)
    env.reset()
    for _ in range(10):
        env.step(Action(server=torch.zeros(3, 5, dtype=torch.long)))
    assert env.state.has_request.sum() > 6
    return env.state


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 3.0]))
def test_learned_shares_keep_the_budgets(state: NetworkState, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = state.phase.shape
    action = Action(
        server=torch.randint(-2, 6, shape, generator=generator),
        bandwidth=0.5 + spread * (torch.rand(shape, generator=generator) - 0.5),
        power=0.5 + spread * (torch.rand(shape, generator=generator) - 0.5),
        draft_length=torch.randint(-3, 20, shape, generator=generator),
    )
    decision = to_decision(action, state, ALL, PHYSICS)
    reach = state.reachable.gather(2, decision.server.unsqueeze(-1)).squeeze(-1)
    assert reach[state.has_request].all()
    for e in range(3):
        used = torch.where(decision.server == e, decision.bandwidth_hz, 0.0).sum(1)
        serves = ((decision.server == e) & state.has_request).any(1)
        band = state.uplink_bandwidth_hz[:, e]
        torch.testing.assert_close(used[serves], band[serves])
        assert (used[~serves] == 0).all()
    assert (decision.bandwidth_hz >= 0).all()
    assert (decision.power_w >= 0).all()
    assert (decision.power_w <= state.power_max_w).all()
    assert ((decision.draft_length >= 0) & (decision.draft_length <= 8)).all()


def test_bandwidth_weights_are_exponential_in_the_action(state: NetworkState) -> None:
    control = ControlConfig(association="learned", bandwidth="learned", draft_length=3)
    here = state.with_(reachable=torch.ones_like(state.reachable), phase=torch.full((3, 5), 3))
    share = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.75]).expand(3, 5)
    action = Action(server=torch.zeros(3, 5, dtype=torch.long), bandwidth=share)
    hertz = to_decision(action, here, control, PHYSICS).bandwidth_hz
    weight = torch.exp(torch.tensor([-3.0, 0.0, 3.0, -1.5, 1.5]))
    expected = weight / weight.sum() * here.uplink_bandwidth_hz[:, :1]
    torch.testing.assert_close(hertz, expected)


def test_power_is_a_share_of_the_limit(state: NetworkState) -> None:
    control = ControlConfig(association="max_sinr", power="learned", draft_length=3)
    decision = to_decision(Action(power=torch.full((3, 5), 0.25)), state, control, PHYSICS)
    torch.testing.assert_close(decision.power_w, 0.25 * state.power_max_w)


@pytest.mark.parametrize("association", ["max_sinr", "least_loaded", "greedy_latency"])
@pytest.mark.parametrize(
    ("length", "bandwidth", "power"),
    [
        ("argmin", "square_root", "full"),
        (2, "square_root", "full"),
        ("log_threshold", "equal_finish", "open_loop"),
        ("argmin", "goodput", "wmmse"),
    ],
)
def test_control_by_rules_alone_decides_as_the_rule_controller(
    state: NetworkState, association: str, length: int | str, bandwidth: str, power: str
) -> None:
    control = ControlConfig.model_validate(
        {"association": association, "draft_length": length, "bandwidth": bandwidth, "power": power}
    )
    link = LinkConfig(interference="reuse1" if power == "wmmse" else "orthogonal")
    physics = Physics.of(PhysicsConfig(link=link))
    rule = RuleController(association, control.allocation(), physics)
    expected, decision = rule.decide(state), to_decision(Action(), state, control, physics)
    for name in ("server", "bandwidth_hz", "power_w", "draft_length"):
        assert torch.equal(getattr(decision, name), getattr(expected, name)), name


def test_action_must_bring_exactly_the_learned_heads(state: NetworkState) -> None:
    server = torch.zeros(3, 5, dtype=torch.long)
    with pytest.raises(UserError, match="learns server"):
        to_decision(Action(), state, ControlConfig(), PHYSICS)
    with pytest.raises(UserError, match="brings server"):
        to_decision(Action(server=server), state, ControlConfig(association="random"), PHYSICS)


def test_random_association_needs_a_generator(state: NetworkState) -> None:
    control = ControlConfig(association="random", draft_length=3)
    with pytest.raises(UserError, match="generator"):
        to_decision(Action(), state, control, PHYSICS)
    to_decision(Action(), state, control, PHYSICS, torch.Generator().manual_seed(0))


def test_unknown_rules_and_negative_lengths_are_refused() -> None:
    with pytest.raises(ValidationError, match="allowed: learned, random"):
        ControlConfig(association="nearest")
    with pytest.raises(ValidationError, match="draft_length is -1"):
        ControlConfig(draft_length=-1)
    assert ALL.learned == ("server", "bandwidth", "power", "draft_length")


def test_running_request_keeps_its_server_where_moves_are_off(state: NetworkState) -> None:
    physics = Physics.of(PhysicsConfig())
    served = state.with_(server=torch.where(state.has_request, 0, -1))
    wanted = Action(server=torch.full_like(state.server, state.num_servers - 1))
    moving = to_decision(wanted, served, ControlConfig(), physics).server
    staying = to_decision(wanted, served, ControlConfig(may_move=False), physics).server
    stays = state.reachable[..., 0] & state.has_request
    moves = state.reachable[..., -1] & state.has_request
    assert stays.any()
    assert moves.any()
    assert bool((staying[stays] == 0).all())
    assert bool((moving[moves] == state.num_servers - 1).all())
