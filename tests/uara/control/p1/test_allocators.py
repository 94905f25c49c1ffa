"""Allocators against general-purpose solvers of scipy on random instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from uara.control.p1.allocators import ALLOCATORS, exact, min_max, square_root, uniform
from uara.control.p1.problem import Problem, excess, objective, parts
from uara.control.p1.readings import PRINTED

Draw = Callable[..., Problem]
DEVICES = 4
COUNTS = pytest.mark.parametrize("networks", [6, pytest.param(200, marks=pytest.mark.slow)])

# Regimes in which bandwidth decides.
READINGS: dict[str, dict[str, Any]] = {
    "overlap": {"payload": "top_k"},
    "sequential, heavy rows": {"payload": "full", "sync": "sequential", "noise": "band"},
    "penalty": {"payload": "top_k", "sync": "penalty_ms", "sync_weight": 1.0, "battery_min": 1.0},
    "predecessor's energy": {
        "payload": "top_k", "sync": "penalty_s", "radio_energy": "predecessor",
        "energy_weight": 100.0,
    },
}  # fmt: skip


def one_server(draw: Draw, networks: int, **readings: Any) -> tuple[Problem, Tensor]:
    problem = draw(networks, DEVICES, 1, **readings)
    return problem, torch.zeros(networks, DEVICES, dtype=torch.long)


def scipy_share(cost: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Minimise a cost of shares that add up to at most 1, over their logarithms."""
    found = minimize(
        lambda logs: cost(np.exp(logs)),
        np.log(start),
        method="SLSQP",
        bounds=[(-16.0, 0.0)] * len(start),
        constraints={"type": "ineq", "fun": lambda logs: 1 - np.exp(logs).sum()},
        options={"maxiter": 300, "ftol": 1e-15},
    )
    share: np.ndarray = np.exp(found.x)
    return share / max(share.sum(), 1.0)


@dataclass(frozen=True)
class Links:
    """The devices of one server as plain numbers, with the formulas written anew."""

    problem: Problem
    network: int

    def of(self, name: str) -> np.ndarray:
        """Take a tensor's values of this server's devices."""
        values: np.ndarray = getattr(self.problem, name)[self.network].numpy()
        return values[:, 0] if values.ndim == 2 else values

    def uplink_s(self, share: np.ndarray) -> np.ndarray:
        """Compute d / R (eq 5)."""
        width = share * float(self.problem.band_hz[self.network, 0])
        noise_hz = width
        if self.problem.readings.noise == "band":
            noise_hz = np.full_like(width, float(self.problem.band_hz[self.network, 0]))
        snr = self.of("gain") * self.of("power_w") / (self.of("noise_w_per_hz") * noise_hz)
        time: np.ndarray = self.of("payload_bits") / (width * np.log2(1 + snr))
        return time

    def cost_s(self, share: np.ndarray) -> float:
        """Compute what the shares cost in I."""
        read, uplink = self.problem.readings, self.uplink_s(share)
        late = uplink - self.of("device_time_s")
        sync = {
            "overlap": np.maximum(late, 0),
            "sequential": uplink,
            "penalty_s": read.sync_weight * late**2,
            "penalty_ms": read.sync_weight * (1e3 * late) ** 2 / 1e3,
        }[read.sync]
        joules = 2.6 * self.of("power_w") * uplink
        if read.radio_energy == "predecessor":
            joules = share * self.of("power_w") * 0.1
        return float((sync + read.energy_weight * joules / self.of("battery")).sum())


@COUNTS
@pytest.mark.parametrize("name", READINGS)
def test_exact_is_no_worse_than_a_general_solver(draw: Draw, name: str, networks: int) -> None:
    problem, server = one_server(draw, networks, **READINGS[name])
    ours = exact(problem, server)
    assert float(excess(problem, server, ours).max()) <= 1e-9
    for network in range(networks):
        links = Links(problem, network)
        mine = links.cost_s(ours.bandwidth[network].numpy())
        total = mine + float(parts(problem, server, ours).server_s[network].sum())

        def cost(share: np.ndarray, links: Links = links, scale: float = total) -> float:
            return links.cost_s(share) / scale

        start = np.full(DEVICES, 1 / DEVICES)
        theirs = min(cost(scipy_share(cost, start)), cost(scipy_share(cost, start / 10)))
        assert mine / total <= theirs + 1e-6
        # The solver stops near the optimum, so ours is not below what can be.
        assert mine / total >= theirs - 1e-3


@COUNTS
def test_square_root_server_time_is_optimal(draw: Draw, networks: int) -> None:
    problem, server = one_server(draw, networks, times="roofline")
    work_s = problem.work_s[..., 0].numpy()
    ours = square_root(problem, server).compute.numpy()
    np.testing.assert_allclose(ours.sum(1), 1, atol=1e-12)
    for work, share in zip(work_s, ours, strict=True):
        scaled = work / work.mean()
        theirs = scipy_share(lambda z, w=scaled: float((w / z).sum()), np.full(DEVICES, 0.25))
        assert (work / share).sum() == pytest.approx((work / theirs).sum(), rel=1e-6)


@COUNTS
@pytest.mark.parametrize("latency", ["overlap", "sequential"])
def test_min_max_is_no_worse_than_a_general_solver(draw: Draw, latency: str, networks: int) -> None:
    problem, server = one_server(draw, networks, payload="top_k", latency=latency)
    ours = min_max(problem, server)
    assert float(excess(problem, server, ours).max()) <= 1e-9
    converged = 0
    for network in range(networks):
        links = Links(problem, network)

        def latencies(y: np.ndarray, z: np.ndarray, links: Links = links) -> np.ndarray:
            device, uplink = links.of("device_time_s"), links.uplink_s(y)
            both = np.maximum(device, uplink) if latency == "overlap" else device + uplink
            total: np.ndarray = both + links.of("work_s") / z
            return total

        mine = latencies(ours.bandwidth[network].numpy(), ours.compute[network].numpy()).max()

        def slack(v: np.ndarray, scale: float = mine, latencies: Any = latencies) -> np.ndarray:
            y, z = np.exp(v[:DEVICES]), np.exp(v[DEVICES:-1])
            return np.append(v[-1] - latencies(y, z) / scale, (1 - y.sum(), 1 - z.sum()))

        even = np.full(DEVICES, 1 / DEVICES)
        start = np.append(np.log(np.tile(even, 2)), latencies(even, even).max() / mine)
        found = minimize(
            lambda v: v[-1],
            start,
            method="SLSQP",
            bounds=[(-16.0, 0.0)] * (2 * DEVICES) + [(0.0, None)],
            constraints={"type": "ineq", "fun": slack},
            options={"maxiter": 100, "ftol": 1e-10},
        )
        if found.success and slack(found.x).min() > -1e-8:
            converged += 1
            assert found.x[-1] >= 1 - 1e-6
    assert converged > networks / 2


def test_min_max_ends_together_where_bandwidth_is_no_matter(draw: Draw) -> None:
    problem = draw(4, 9, 2, latency="printed")
    server = problem.gain.argmax(-1)
    found = parts(problem.for_latency(), server, min_max(problem, server))
    latency = found.device_s + found.server_s
    for network in range(4):
        for j in range(2):
            mine = latency[network][server[network] == j]
            torch.testing.assert_close(mine, mine.amax().expand_as(mine), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_budgets_hold_on_many_servers(draw: Draw, name: Any) -> None:
    for readings in ({}, {"payload": "full"}, {"interference": "reuse1"}, PRINTED):
        problem = draw(3, 12, 4, **readings)
        server = problem.gain.argmax(-1)
        shares = ALLOCATORS[name](problem, server)
        assert float(excess(problem, server, shares).max()) <= 1e-9
        assert bool((shares.bandwidth > 0).all())
        assert bool((shares.compute > 0).all())


def test_exact_is_the_least_of_all_allocators(draw: Draw) -> None:
    problem = draw(6, 15, 3, payload="top_k")
    server = problem.gain.argmax(-1)
    least = objective(problem, server, exact(problem, server))
    for allocate in ALLOCATORS.values():
        assert bool((least <= objective(problem, server, allocate(problem, server)) + 1e-12).all())


def test_everybody_has_a_whole_band_under_the_printed_budget(draw: Draw) -> None:
    problem = draw(2, 5, 2, budget="printed")
    server = problem.gain.argmax(-1)
    assert bool((uniform(problem, server).bandwidth == 1).all())
    assert float(excess(problem, server, uniform(problem, server)).max()) == 0
