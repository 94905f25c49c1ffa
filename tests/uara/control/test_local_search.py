"""Searches end where nothing helps any more, and how far from the best of all that is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES, sticky
from uara.control.exhaustive import exhaustive
from uara.control.greedy import best_response, greedy_latency
from uara.control.local_search import tma, tma_moves
from uara.control.scores import max_gain
from uara.errors import UserError
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig, predict
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]
Total = Callable[[NetworkState, Tensor, Allocator], Tensor]
ROUNDING = 1 + 3e-6
DRAW = torch.Generator()


@pytest.fixture
def allocator(physics: Physics) -> Allocator:
    return Allocator(AllocationConfig(), physics)


@pytest.fixture(scope="module")
def state(make_state: MakeState) -> NetworkState:
    return make_state(15, 6, 3, seed=3)


def swapped(server: Tensor, first: int, second: int) -> Tensor:
    order = list(range(server.shape[1]))
    order[first], order[second] = second, first
    return server[:, order]


def is_in_reach(state: NetworkState, server: Tensor) -> Tensor:
    inside = state.reachable.gather(2, server.unsqueeze(-1)).squeeze(-1)
    return (inside | ~state.has_request).all(1)


def assert_no_swap_helps(
    state: NetworkState, server: Tensor, allocator: Allocator, total_s: Total
) -> None:
    here = total_s(state, server, allocator)
    for first, second in itertools.combinations(range(6), 2):
        other = swapped(server, first, second)
        both = state.has_request[:, first] & state.has_request[:, second]
        there = total_s(state, other, allocator)
        assert (there * ROUNDING >= here)[both & is_in_reach(state, other)].all()


def test_swaps_end_where_no_swap_helps_and_keep_the_loads(
    state: NetworkState, allocator: Allocator, total_s: Total
) -> None:
    server, start = tma(state, allocator, DRAW), max_gain(state, allocator, DRAW)
    assert_no_swap_helps(state, server, allocator, total_s)
    active = state.has_request
    loads = [torch.where(active, s, -1).sort(1).values for s in (server, start)]
    assert torch.equal(*loads)
    assert (server != start).any()


def test_swaps_and_moves_end_where_neither_helps(
    state: NetworkState, allocator: Allocator, total_s: Total
) -> None:
    server = tma_moves(state, allocator, DRAW)
    assert_no_swap_helps(state, server, allocator, total_s)
    here = total_s(state, server, allocator)
    for device, choice in itertools.product(range(6), range(3)):
        other = server.clone()
        other[:, device] = choice
        there = total_s(state, other, allocator)
        may = state.has_request[:, device] & state.reachable[:, device, choice]
        assert (there * ROUNDING >= here)[may].all()


def test_best_responses_end_in_an_equilibrium(state: NetworkState, allocator: Allocator) -> None:
    server = best_response(state, allocator, DRAW)

    def own_s(chosen: Tensor, device: int) -> Tensor:
        decision = allocator.quick(state, chosen)
        return predict(state, decision, allocator.physics, "request").remaining_s[:, device]

    for device, choice in itertools.product(range(6), range(3)):
        other = server.clone()
        other[:, device] = choice
        may = state.has_request[:, device] & state.reachable[:, device, choice]
        gain_s = own_s(server, device) - own_s(other, device)
        assert (gain_s[may] < 1e-3).all()


def test_sticky_moves_a_device_when_its_gain_exceeds_the_margin(
    make_state: MakeState, allocator: Allocator, total_s: Total
) -> None:
    alone = make_state(300, 1, 2, seed=4, reachable=True)
    wanted = alone.gain.argmax(-1)
    running = alone.has_request & (alone.server >= 0) & (alone.server != wanted)
    stays = total_s(alone, alone.server.clamp_min(0), allocator)
    gain_s = stays - total_s(alone, wanted, allocator)
    for margin_s in (0.0, 2.0):
        found = sticky(max_gain, margin_s, afresh=True)(alone, allocator, DRAW)
        moves = gain_s > margin_s
        clear = running[:, 0] & ((gain_s - margin_s).abs() > 1e-3)
        assert torch.equal((found == wanted)[clear, 0], moves[clear])
        assert 2 < moves[clear].sum() < clear.sum() - 10
        new = alone.has_request & (alone.server < 0)
        assert torch.equal(found[new], wanted[new])


def best_by_whole_networks(state: NetworkState, allocator: Allocator, total_s: Total) -> Tensor:
    """Predict all associations of each network at once, (B,) the least total."""
    num, devices, servers = state.gain.shape
    choices = torch.tensor(list(itertools.product(range(servers), repeat=devices)))
    found = []
    for network in range(num):
        copies = state.select(torch.full((len(choices),), network))
        total = total_s(copies, choices, allocator)
        found.append(total[is_in_reach(copies, choices)].min())
    return torch.stack(found)


@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
def test_exhaustive_finds_the_least_total(
    interference: str, make_state: MakeState, total_s: Total
) -> None:
    state = make_state(6, 4, 3, seed=7)
    link = LinkConfig(interference=interference)  # type: ignore[arg-type]
    allocator = Allocator(AllocationConfig(), Physics.of(PhysicsConfig(link=link)))
    found = exhaustive(state, allocator, DRAW)
    expected = best_by_whole_networks(state, allocator, total_s)
    torch.testing.assert_close(total_s(state, found, allocator), expected, rtol=1e-5, atol=1e-5)
    assert is_in_reach(state, found).all()


def test_exhaustive_refuses_too_many_associations(
    make_state: MakeState, allocator: Allocator
) -> None:
    with pytest.raises(UserError, match=r"4\^9 associations .* at most 200,000"):
        exhaustive(make_state(1, 9, 4, fresh=True), allocator, DRAW)


ONE_SLOT = [name for name in ASSOCIATION_RULES if name != "exhaustive"]


def gaps(state: NetworkState, rule: str, allocator: Allocator, total_s: Total) -> Tensor:
    """Compute how far above the least total a rule ends, (B,)."""
    best, found = (
        total_s(state, ASSOCIATION_RULES[name](state, allocator, DRAW), allocator)
        for name in ("exhaustive", rule)
    )
    return found / best - 1


@pytest.mark.parametrize("rule", ONE_SLOT)
def test_no_rule_ends_below_exhaustive(
    rule: str, make_drops: MakeState, allocator: Allocator, total_s: Total
) -> None:
    assert (gaps(make_drops(20, 6, 3, 5), rule, allocator, total_s) > -ROUNDING + 1).all()


@pytest.mark.parametrize(("rule", "most"), [("greedy_latency", 0.01), ("tma_moves", 0.005)])
def test_gap_to_the_best_of_all_associations(
    rule: str, most: float, make_drops: MakeState, allocator: Allocator, total_s: Total
) -> None:
    state = make_drops(60, 7, 3, 50)
    assert 0 < gaps(state, rule, allocator, total_s).mean() < most
    # The bound says something: a simple rule is far from it.
    assert gaps(state, "max_gain", allocator, total_s).mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "most"), [("greedy_latency", 0.01), ("tma_moves", 0.005)])
@pytest.mark.parametrize("seed", range(8))
def test_gap_on_many_drops(
    seed: int,
    rule: str,
    most: float,
    make_drops: MakeState,
    allocator: Allocator,
    total_s: Total,
) -> None:
    assert gaps(make_drops(200, 7, 3, seed), rule, allocator, total_s).mean() < most


def test_greedy_ends_no_worse_with_swaps(
    make_drops: MakeState, allocator: Allocator, total_s: Total
) -> None:
    state = make_drops(20, 8, 3, 2)
    without, with_swaps = (
        total_s(state, greedy_latency(state, allocator, DRAW, swaps=swaps), allocator)
        for swaps in (False, True)
    )
    assert (with_swaps <= without * ROUNDING).all()
    assert with_swaps.sum() < without.sum()
