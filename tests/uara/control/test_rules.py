"""Rules for servers by their definitions, and what every rule's decision keeps to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.control.greedy import greedy_latency
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState, Phase
from uara.prediction import Physics, predict

MakeState = Callable[..., NetworkState]
RULES = pytest.mark.parametrize("rule", ASSOCIATION_RULES)
SIMPLE_RULES = pytest.mark.parametrize(
    "rule",
    [
        *("random", "max_gain", "max_sinr", "bias_cre", "max_compute", "least_loaded"),
        *("max_compute_share", "max_rate_share"),
    ],
)


def decide(
    rule: str, state: NetworkState, physics: Physics, *, seed: int = 0, **allocation: object
) -> Decision:
    controller = RuleController(rule, AllocationConfig(**allocation), physics)  # type: ignore[arg-type]
    everywhere = torch.ones(state.num_networks, dtype=torch.bool)
    controller.reset(everywhere, torch.Generator().manual_seed(seed))
    return controller.decide(state)


# Each rule by its definition.


def test_max_sinr_takes_the_strongest_server_in_reach(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 3, 3, fresh=True,
        gain=[[[1e-9, 3e-9, 2e-9], [5e-9, 1e-9, 2e-9], [1e-9, 2e-9, 2e-9]]],
        reachable=[[[True, True, True], [False, True, True], [True, True, True]]],
    )  # fmt: skip
    assert decide("max_sinr", state, physics).server.tolist() == [[1, 2, 1]]


def test_max_compute_sends_everybody_to_the_fastest_server_in_reach(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 3, 3, fresh=True, forward_fixed_s=[[0.2, 0.1, 0.15]],
        reachable=[[[True, True, True], [True, False, True], [True, False, False]]],
    )  # fmt: skip
    assert decide("max_compute", state, physics).server.tolist() == [[1, 2, 0]]


def test_least_loaded_places_one_new_request_after_the_other(
    make_state: MakeState, physics: Physics
) -> None:
    # Two run on server 0 and one on server 2; the new ones fill 1, 1, 2 and then 0 first of equals,
    # the longest waiting before the others, and of two that came together the one nearer to a site.
    state = make_state(
        1, 7, 3, phase=[[Phase.DECODING] * 3 + [Phase.UPLOADING] * 4],
        server=[[0, 2, 0, -1, -1, -1, -1]], reachable=True,
        age_s=[[9.0, 8.0, 7.0, 0.1, 0.4, 0.2, 0.2]],
    )  # fmt: skip
    gain = state.gain.clone()
    gain[0, 5:] = torch.tensor([[1e-10], [2e-10]])
    server = decide("least_loaded", state.with_(gain=gain), physics).server
    assert server.tolist() == [[0, 2, 0, 0, 1, 2, 1]]


def test_least_loaded_counts_foreign_rows_and_keeps_to_the_reach(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(
        1, 3, 3, fresh=True, foreign_rows=[[0, 5, 1]], age_s=[[0.3, 0.2, 0.1]],
        reachable=[[[True] * 3, [False, True, True], [False, True, False]]],
    )  # fmt: skip
    assert decide("least_loaded", state, physics).server.tolist() == [[0, 2, 1]]


def test_random_is_uniform_over_the_servers_in_reach(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 3000, 4, fresh=True, reachable=torch.tensor([True, False, True, True]))
    server = decide("random", state, physics, draft_length=4).server
    counts = torch.bincount(server.flatten(), minlength=4).tolist()
    assert counts.pop(1) == 0
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_follows_its_generator(make_state: MakeState, physics: Physics) -> None:
    state = make_state(1, 40, 4, fresh=True, reachable=True)
    first, again, other = (
        decide("random", state, physics, seed=seed, draft_length=4).server for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@SIMPLE_RULES
def test_simple_rules_keep_the_server_of_a_running_request(
    rule: str, make_state: MakeState, physics: Physics
) -> None:
    state = make_state(50, 5, 3, seed=1, reachable=True)
    running = state.has_request & (state.server >= 0)
    server = decide(rule, state, physics, draft_length=4).server
    assert running.any()
    assert torch.equal(server[running], state.server[running])


def best_by_exhaustion(state: NetworkState, allocator: Allocator) -> float:
    """Find the least predicted total remaining time of one network over all associations."""
    choices = torch.tensor(
        list(itertools.product(range(state.num_servers), repeat=state.num_devices))
    )
    return total_remaining_s(
        state.select(torch.zeros(len(choices)).long()), choices, allocator
    ).min()


def total_remaining_s(state: NetworkState, server: Tensor, allocator: Allocator) -> Tensor:
    decision = allocator.quick(state, server)
    remaining_s = predict(state, decision, allocator.physics, "request").remaining_s
    return torch.where(state.has_request, remaining_s, 0.0).sum(1)


@pytest.fixture(scope="module")
def typical(make_state: MakeState) -> NetworkState:
    """Sixty networks of 4 x 3 with fresh requests: 30 % photos, 1.25 MHz for three servers."""
    draw = torch.Generator().manual_seed(50)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=draw)

    is_photo = torch.rand((60, 4), generator=draw) < 0.3
    return make_state(
        60, 4, 3, fresh=True, reachable=True,
        gain=10 ** (between(-125, -90, 60, 4, 3) / 10),
        expected_remaining_tokens=between(60, 100, 60, 4),
        acceptance=between(0.6, 0.85, 60, 4),
        upload_bits=torch.where(is_photo, 8e6, 6e4),
        uplink_bandwidth_hz=1.25e6 / 3, downlink_bandwidth_hz=1e7 / 3, power_max_w=0.2, rtt_s=0.02,
    )  # fmt: skip


def test_greedy_comes_close_to_the_best_of_all_associations(
    typical: NetworkState, physics: Physics
) -> None:
    allocator = Allocator(AllocationConfig(), physics)
    server = decide("greedy_latency", typical, physics).server
    strongest = decide("max_sinr", typical, physics).server
    found, simple = (total_remaining_s(typical, s, allocator) for s in (server, strongest))
    best = torch.stack(
        [best_by_exhaustion(typical.select(torch.tensor([b])), allocator) for b in range(60)]
    )
    gap = found / best - 1
    assert (gap > -1e-5).all()
    assert gap.mean() < 0.01
    # The bound says something: a simple rule is far from it.
    assert (simple / best - 1).mean() > 0.1


def test_greedy_inserts_new_requests_by_best_gain_where_the_total_is_least(
    typical: NetworkState, physics: Physics
) -> None:
    allocator = Allocator(AllocationConfig(), physics)
    server = greedy_latency(typical, allocator, torch.Generator(), sweeps=1, swaps=False)
    for network in range(15):
        alone = typical.select(torch.tensor([network]))
        best_gain = alone.gain[0].max(1).values.tolist()
        chosen = torch.zeros(1, 4, dtype=torch.long)
        phase = torch.full((1, 4), int(Phase.IDLE))
        for device in sorted(range(4), key=lambda i: -best_gain[i]):
            phase[0, device] = Phase.UPLOADING
            totals = []
            for candidate in range(3):
                chosen[0, device] = candidate
                view = alone.with_(phase=phase.clone())
                totals.append(total_remaining_s(view, chosen.clone(), allocator).item())
            chosen[0, device] = totals.index(min(totals))
        assert torch.equal(chosen[0], server[network])


def test_greedy_moves_a_request_only_when_the_prefill_pays(
    make_state: MakeState, physics: Physics
) -> None:
    common = {
        "phase": Phase.DECODING, "prompt_tokens": 2000, "tokens_so_far": 10, "kv_tokens": 2010,
        "upload_bits": 0, "server": 0, "reachable": True, "gain": 1e-10, "rtt_s": 0.02,
        "uplink_bandwidth_hz": 1e6, "downlink_bandwidth_hz": 4e6, "acceptance": 0.7,
        "forward_fixed_s": [[0.3, 0.1]], "forward_per_token_s": 0.3e-3,
    }  # fmt: skip
    many = make_state(1, 1, 2, expected_remaining_tokens=100, **common)
    few = make_state(1, 1, 2, expected_remaining_tokens=3, **common)
    assert decide("greedy_latency", many, physics).server.item() == 1
    assert decide("greedy_latency", few, physics).server.item() == 0


def test_unknown_rule_is_refused_with_the_rules_that_are_known(physics: Physics) -> None:
    with pytest.raises(UserError, match="'clever' is unknown; allowed: random, max_sinr"):
        RuleController("clever", AllocationConfig(), physics)


# What every decision keeps to.


@RULES
def test_rule_is_a_controller(rule: str, physics: Physics) -> None:
    controller = RuleController(rule, AllocationConfig(), physics)
    assert isinstance(controller, Controller)
    assert (controller.name, controller.observes) == (rule, "network")


@RULES
@settings(max_examples=7)
@given(st.integers(0, 10_000), st.sampled_from(["equal", "square_root"]), st.integers(1, 6))
def test_decision_keeps_to_reach_budgets_and_limits(
    make_state: MakeState, physics: Physics, rule: str, seed: int, bandwidth: str, devices: int
) -> None:
    state = make_state(3, devices, 3, seed=seed)
    decision = decide(rule, state, physics, seed=seed, bandwidth=bandwidth)
    active = state.has_request
    assert ((decision.server >= 0) & (decision.server < 3)).all()
    in_reach = state.reachable.gather(2, decision.server[..., None])[..., 0]
    assert in_reach[active].all()
    assert (decision.bandwidth_hz >= 0).all()
    assert (decision.power_w >= 0).all()
    assert (decision.power_w <= state.power_max_w).all()
    assert (decision.draft_length >= 0).all()
    assert (decision.draft_length <= physics.config.max_draft_length).all()
    for network, server in itertools.product(range(3), range(3)):
        on_it = decision.server[network] == server
        used_hz = decision.bandwidth_hz[network, on_it].double().sum()
        assert used_hz <= state.uplink_bandwidth_hz[network, server] * (1 + 1e-6)


@pytest.mark.parametrize("rule", ["max_sinr", "max_compute", "greedy_latency"])
@settings(max_examples=25)
@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_decisions_follow_the_devices_however_they_are_numbered(
    make_state: MakeState,
    relabel: Callable[[NetworkState, Tensor], NetworkState],
    physics: Physics,
    rule: str,
    seed: int,
    order: list[int],
) -> None:
    index = torch.tensor(order)
    state = make_state(3, 5, 3, seed=seed)
    here = decide(rule, state, physics)
    there = decide(rule, relabel(state, index), physics)
    active = state.has_request[:, index]
    for name in ("server", "bandwidth_hz", "power_w", "draft_length"):
        old, new = getattr(here, name)[:, index], getattr(there, name)
        torch.testing.assert_close(new[active], old[active], rtol=1e-4, atol=1e-3, msg=name)
