"""Look-ahead over a simulator whose costs are made up: candidates, common futures, choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.lookahead import LookAhead, LookAheadConfig
from uara.control.rules import RuleController
from uara.network import Controller, Decision, NetworkState, Phase
from uara.prediction import Physics

MakeState = Callable[..., NetworkState]


@dataclass
class MadeUp:
    """Charges a decision as the test says, and remembers what it was asked."""

    cost: Callable[[Decision, Tensor], Tensor]
    networks: list[Tensor] = field(default_factory=list)
    futures: list[Tensor | None] = field(default_factory=list)
    first: list[Decision] = field(default_factory=list)

    def play(
        self,
        networks: Tensor,
        futures: Tensor | None,
        first: Decision,
        player: Controller,
        slots: int,
    ) -> Tensor:
        """Charge each copy."""
        self.networks.append(networks)
        self.futures.append(futures)
        self.first.append(first)
        noise = torch.zeros(len(networks)) if futures is None else (futures % 1000) / 10.0
        return self.cost(first, noise).double()


def look(physics: Physics, simulator: MadeUp, *, true: bool = False, **config: object) -> LookAhead:
    rules = [RuleController("max_sinr", AllocationConfig(draft_length=4), physics) for _ in "ab"]
    ahead = LookAhead(
        *rules, rules[0].allocator, simulator, LookAheadConfig(**config), true_future=true
    )  # type: ignore[misc]
    ahead.reset(torch.ones(3, dtype=torch.bool), torch.Generator().manual_seed(1))
    return ahead


def fresh(make_state: MakeState, **changes: object) -> NetworkState:
    return make_state(3, 3, 3, seed=4, fresh=True, reachable=True, **changes)


def test_it_takes_the_candidate_that_plays_out_best(
    make_state: MakeState, physics: Physics
) -> None:
    state = fresh(make_state)
    base = state.gain.argmax(-1)
    wanted = base.clone()
    wanted[0, 1] = (base[0, 1] + 1) % 3

    def cost(first: Decision, noise: Tensor) -> Tensor:
        return 10 - 5.0 * (first.server == wanted[0]).all(1) + noise

    decision = look(physics, MadeUp(cost), defer=False).decide(state)
    assert torch.equal(decision.server[0], wanted[0])
    allocator = Allocator(AllocationConfig(draft_length=4), physics)
    again = allocator(state, decision.server)
    torch.testing.assert_close(decision.bandwidth_hz, again.bandwidth_hz)


def test_it_keeps_the_bases_decision_where_nothing_is_better(
    make_state: MakeState, physics: Physics
) -> None:
    state = fresh(make_state)
    own = RuleController("max_sinr", AllocationConfig(draft_length=4), physics).decide(state)
    decision = look(physics, MadeUp(lambda first, noise: noise)).decide(state)
    for name in ("server", "bandwidth_hz", "power_w", "draft_length"):
        assert torch.equal(getattr(decision, name), getattr(own, name))


def test_all_candidates_of_a_network_meet_the_same_futures(
    make_state: MakeState, physics: Physics
) -> None:
    simulator = MadeUp(lambda first, noise: noise)
    look(physics, simulator, futures=5).decide(fresh(make_state))
    networks, futures = simulator.networks[0], simulator.futures[0]
    assert futures is not None
    keys = {b: futures[networks == b].view(-1, 5) for b in range(3)}
    for b in range(3):
        # the base, three devices at two other servers, three pauses
        assert keys[b].shape[0] == 1 + 3 * 2 + 3
        assert (keys[b] == keys[b][0]).all()
        assert len(keys[b][0].unique()) == 5
    assert not torch.equal(keys[0][0], keys[1][0])


def test_candidates_change_one_device_in_reach(make_state: MakeState, physics: Physics) -> None:
    state = make_state(3, 4, 3, seed=6)
    simulator = MadeUp(lambda first, noise: noise)
    own = RuleController("max_sinr", AllocationConfig(draft_length=4), physics).decide(state)
    look(physics, simulator, true=True, changes="all").decide(state)
    networks, first = simulator.networks[0], simulator.first[0]
    changed = first.server != own.server[networks]
    paused = (first.power_w == 0) & state.has_request[networks]
    assert (changed.sum(1) + paused.sum(1) <= 1).all()
    assert changed.any(1).sum() == (state.reachable.sum(-1) - 1)[state.has_request].sum()
    assert paused.sum() == (state.phase == Phase.UPLOADING).sum()
    in_reach = state.reachable[networks].gather(2, first.server[..., None])[..., 0]
    assert in_reach[state.has_request[networks]].all()


def test_only_new_requests_are_changed_unless_all_are(
    make_state: MakeState, physics: Physics
) -> None:
    state = fresh(make_state, server=[[-1, 0, 1], [0, 1, 2], [2, 2, -1]])
    simulator = MadeUp(lambda first, noise: noise)
    look(physics, simulator, true=True, defer=False).decide(state)
    # two networks have one new request each; the other one has nothing to try
    assert simulator.networks[0].tolist() == [0, 2, 0, 0, 2, 2]


def test_a_difference_within_its_noise_changes_nothing(
    make_state: MakeState, physics: Physics
) -> None:
    state = fresh(make_state)
    base = state.gain.argmax(-1)

    def uncertain(first: Decision, noise: Tensor) -> Tensor:
        moved = ~(first.server[:, None] == base[None]).all(-1).any(1)
        return torch.where(moved, 99.9 - noise, noise)

    for errors, moves in ((1e6, False), (0.0, True)):
        ahead = look(physics, MadeUp(uncertain), defer=False, standard_errors=errors, futures=3)
        assert (not torch.equal(ahead.decide(state).server, base)) == moves


@pytest.mark.parametrize(("true", "name"), [(False, "lookahead"), (True, "hindsight")])
def test_it_is_a_controller_named_after_its_base(physics: Physics, true: bool, name: str) -> None:
    ahead = look(physics, MadeUp(lambda first, noise: noise), true=true)
    assert isinstance(ahead, Controller)
    assert (ahead.name, ahead.observes) == (f"{name}(max_sinr)", "network")
