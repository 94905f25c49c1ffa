"""Rules for X: what they must never do, and what they must always do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from uara.control.p1.allocators import ALLOCATORS
from uara.control.p1.associations import ASSOCIATIONS, improve
from uara.control.p1.bound import bound_at, latency_bound_s, lower_bound
from uara.control.p1.counting import Counting
from uara.control.p1.problem import Problem, decided_objective, mean_latency_s
from uara.control.p1.readings import PRINTED
from uara.errors import UserError

Draw = Callable[..., Problem]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def cost(problem: Problem, server: Tensor, allocator: Any) -> Tensor:
    return decided_objective(problem, server, ALLOCATORS[allocator](problem, server))


@pytest.mark.parametrize("has_equal_time", [True, False])
def test_prices_of_changes_are_differences_of_costs(draw: Draw, *, has_equal_time: bool) -> None:
    problem = draw(2, 5, 3, payload="top_k", queue="slots")
    server = ASSOCIATIONS["random"](problem, "uniform", seeded())
    allocator = "uniform" if has_equal_time else "square_root"
    counting = Counting.of(problem, server, has_equal_time=has_equal_time)
    before = cost(problem, server, allocator)
    torch.testing.assert_close(counting.cost_s(), before)
    moves, swaps = counting.moves_s(), counting.swaps_s()
    for i in range(5):
        for j in range(3):
            moved = server.clone()
            moved[:, i] = j
            torch.testing.assert_close(moves[:, i, j], cost(problem, moved, allocator) - before)
        for k in range(5):
            swapped = server.clone()
            swapped[:, [i, k]] = server[:, [k, i]]
            torch.testing.assert_close(swaps[:, i, k], cost(problem, swapped, allocator) - before)


def test_greedy_places_each_device_where_the_total_rises_least(draw: Draw) -> None:
    problem = draw(1, 5, 3, payload="top_k")
    found = ASSOCIATIONS["greedy"](problem, "uniform", seeded())[0]
    order = problem.gain[0].amax(-1).argsort(descending=True).tolist()
    placed: dict[int, int] = {}

    def total(where: dict[int, int]) -> float:
        # The placed devices alone, as an instance of their own.
        rows = list(where)
        keep = {
            name: getattr(problem, name)[:, rows]
            for name in ("device_time_s", "payload_bits", "power_w", "compute_energy_j", "battery",
                         "work_s", "gain", "noise_w_per_hz")
        }  # fmt: skip
        part = Problem(**(vars(problem) | keep))
        return float(cost(part, torch.tensor([list(where.values())]), "uniform"))

    for device in order:
        placed[device] = min(range(3), key=lambda j, d=device: total({**placed, d: j}))
    assert found.tolist() == [placed[i] for i in range(5)]


@pytest.mark.parametrize("allocator", ["uniform", "square_root", "exact"])
@pytest.mark.parametrize("readings", [{}, {"payload": "full"}, {"interference": "reuse1"}])
def test_matching_is_never_worse_than_its_start(
    draw: Draw, allocator: Any, readings: dict[str, Any]
) -> None:
    problem = draw(3, 10, 3, **readings)
    start = cost(problem, problem.gain.argmax(-1), allocator)
    swaps = cost(problem, ASSOCIATIONS["tma"](problem, allocator, seeded()), allocator)
    moves = cost(problem, ASSOCIATIONS["tma_moves"](problem, allocator, seeded()), allocator)
    assert bool((swaps <= start + 1e-12).all())
    assert bool((moves <= start + 1e-12).all())


def test_exchanges_keep_how_many_devices_a_server_has(draw: Draw) -> None:
    problem = draw(4, 15, 3)
    start = problem.gain.argmax(-1)
    found = ASSOCIATIONS["tma"](problem, "uniform", seeded())
    assert not torch.equal(found, start)
    for j in range(3):
        assert torch.equal((found == j).sum(1), (start == j).sum(1))


def test_no_change_improves_on_matching_with_moves(draw: Draw) -> None:
    problem = draw(4, 15, 3, payload="top_k")
    server = ASSOCIATIONS["tma_moves"](problem, "uniform", seeded())
    counting = Counting.of(problem, server, has_equal_time=True)
    assert float(torch.cat((counting.moves_s(), counting.swaps_s()), 2).min()) > -1e-11


def test_the_printed_swap_test_raises_the_objective(draw: Draw) -> None:
    problem = draw(4, 15, 3, swap_test="printed")
    start = cost(problem, problem.gain.argmax(-1), "uniform")
    found = cost(problem, ASSOCIATIONS["tma"](problem, "uniform", seeded()), "uniform")
    assert bool((found > start).all())


@pytest.mark.parametrize("allocator", ["uniform", "exact"])
def test_exhaustive_is_never_above_others_and_the_bound_never_above_it(
    draw: Draw, allocator: Any
) -> None:
    for readings in ({"payload": "top_k"}, {"queue": "slots"}, {"sync": "penalty_ms"}):
        problem = draw(3, 4, 3, **readings)
        best = cost(problem, ASSOCIATIONS["exhaustive"](problem, allocator, seeded()), allocator)
        for rule in ASSOCIATIONS.values():
            other = cost(problem, rule(problem, allocator, seeded()), allocator)
            assert bool((best <= other + 1e-12).all())
        assert bool((lower_bound(problem) <= best + 1e-12).all())


@pytest.mark.parametrize("readings", [{}, {"payload": "full"}, {"interference": "reuse1"}, PRINTED])
def test_the_bound_holds_for_latency_whatever_the_rules(
    draw: Draw, readings: dict[str, Any]
) -> None:
    problem = draw(3, 12, 4, **readings)
    bound = latency_bound_s(problem)
    for name in ("max_sinr", "greedy", "tma_moves"):
        server = ASSOCIATIONS[name](problem, "exact", seeded())
        latency = mean_latency_s(problem, server, ALLOCATORS["exact"](problem, server))
        assert bool((bound <= latency + 1e-12).all())


def test_the_bound_holds_at_any_prices_and_is_tight_with_many_devices(draw: Draw) -> None:
    problem = draw(2, 40, 4, payload="top_k")
    found = cost(problem, ASSOCIATIONS["tma_moves"](problem, "exact", seeded()), "exact")
    for scale in (0.0, 0.1, 1.0):
        price = torch.full((2, 4), scale, dtype=torch.float64)
        assert bool((bound_at(problem, price, price) <= found).all())
    assert bool((lower_bound(problem) > 0.95 * found).all())


@pytest.mark.parametrize(
    "name", ["max_sinr", "max_compute", "least_loaded", "greedy", "tma", "tma_moves"]
)
@pytest.mark.parametrize("allocator", ["uniform", "square_root"])
def test_relabelling_permutes_the_association(
    draw: Draw,
    relabel: Callable[[Problem, Tensor, Tensor], Problem],
    name: str,
    allocator: Any,
) -> None:
    # Every server a kind of its own would be needed to break ties of `max_compute` otherwise.
    problem = draw(4, 8, 3, payload="top_k")
    if name == "max_compute":
        problem.capacity_flop_per_s[:] = torch.tensor([1e13, 3e13, 2e13])
    device, server = torch.tensor([7, 2, 0, 5, 1, 6, 3, 4]), torch.tensor([2, 0, 1])
    place = server.argsort()
    rule = ASSOCIATIONS[name]
    mine = rule(problem, allocator, seeded())
    other = rule(relabel(problem, device, server), allocator, seeded())
    assert torch.equal(place[mine][:, device], other)


def test_readings_of_max_compute(draw: Draw) -> None:
    speeds = torch.tensor([[8e13, 1e13, 8e13, 3e13]], dtype=torch.float64)

    def chosen(reading: str) -> Tensor:
        problem = draw(1, 60, 4, max_compute=reading)
        problem.capacity_flop_per_s[:] = speeds
        server = ASSOCIATIONS["max_compute"](problem, "uniform", seeded())[0]
        return torch.bincount(server, minlength=4)

    assert chosen("argmax").tolist() == [60, 0, 0, 0]
    spread = chosen("spread").tolist()
    assert spread[1] == spread[3] == 0
    assert min(spread[0], spread[2]) > 15
    # One after the other to the most capacity per device: in proportion to speed.
    assert chosen("share").tolist() == [24, 3, 24, 9]
    softmax = chosen("softmax")
    assert int(softmax.min()) > 0
    assert int(softmax[[0, 2]].min()) > int(softmax[1])


def test_random_uses_all_servers_alike(draw: Draw) -> None:
    problem = draw(20, 50, 4)
    counts = torch.bincount(ASSOCIATIONS["random"](problem, "uniform", seeded()).flatten())
    assert float((counts / 250 - 1).abs().max()) < 0.2


def test_exhaustive_refuses_large_instances(draw: Draw) -> None:
    with pytest.raises(UserError, match=r"exhaustive would try 4\^20"):
        ASSOCIATIONS["exhaustive"](draw(1, 20, 4), "uniform", seeded())


def test_raising_and_lowering_end_apart(draw: Draw) -> None:
    problem = draw(2, 10, 3)
    start = problem.gain.argmax(-1)
    low, high = (cost(problem, improve(problem, "uniform", start, moves=True, sign=s), "uniform")
                 for s in (1.0, -1.0))  # fmt: skip
    assert bool((low < high).all())
