"""A lower bound of I over all associations and all shares.

Shape legend: B networks, M devices, E servers, K shares of a grid.

For any prices mu_j >= 0 of bands and s_j >= 0 of servers, every feasible X, Y, Z has

    I >= sum_i min_j [ a_ij + h_ij(mu_j) + 2 s_j q_ij ] - sum_j (mu_j + s_j^2),

with a_ij what a pair costs anyway, h_ij(mu) = min_y c_ij(y) + mu y of its uplink cost c_ij, and
q_ij = sqrt(w_ij) of its work. Proof: adding mu_j (sum_i y_i - 1) <= 0 for each band separates the
uplinks; the least time on a server is S^2 = (sum_i q_ij)^2 (the square-root rule), which is at
least 2 s S - s^2 and so becomes linear; what is left is a choice of a server by each device alone.
The right side is concave in the prices; they are raised by gradient steps on a smoothed form, and
the bound is then computed without smoothing, so it holds however good the prices are. Where few
devices share many servers, each device alone at its best server bounds I better; the larger counts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uara.control.p1.allocators import band_prices
from uara.control.p1.associations import greedy
from uara.control.p1.counting import Counting
from uara.control.p1.problem import Problem, uplink, uplink_to_all
from uara.control.p1.uplink import Uplink

STEPS = 80
RATE = 0.05  # of the first step, in logarithms of prices
GRID = 16  # shares at which uplink costs are tabulated for the steps
WARM, COLD = 0.05, 0.0005  # smoothing at the first and the last step, in mean costs of a device
SLACK_MARGIN = 1e-6  # price of a band with room to spare, in mean costs


def bound_at(problem: Problem, band_price: Tensor, server_price: Tensor) -> Tensor:
    """Compute the bound of the decided part of I for given prices, (B,).

    Args:
        problem: instances.
        band_price: (B, E) >= 0.
        server_price: (B, E) >= 0.
    """
    problem, links = _without_interference(problem)
    if problem.readings.budget == "printed":
        band_price = torch.zeros_like(band_price)
    price = band_price.unsqueeze(1).expand_as(problem.work_s)
    share = links.best_share(price)
    uplink_s = links.convex_cost_s(share) + price * share
    return _value(problem, uplink_s, band_price, server_price)


def lower_bound(problem: Problem) -> Tensor:
    """Bound the decided part of I from below (see `decided_objective`), (B,)."""
    band_price, server_price = _first_prices(problem)
    problem, links = _without_interference(problem)
    grid = torch.logspace(-2 - len(str(problem.num_devices)) / 2, 0, GRID, dtype=torch.float64)
    shape = (GRID, *problem.work_s.shape)
    table = torch.stack([links.convex_cost_s(y.expand(shape[1:])) for y in grid])
    typical = _value(problem, table[-1], band_price * 0, server_price).abs()[:, None]
    typical = typical / problem.num_devices
    floor = SLACK_MARGIN * typical
    logs = torch.stack(((band_price + floor).log(), (server_price + floor).log()))
    best, best_value = logs.clone(), torch.full_like(typical[:, 0], -torch.inf)
    logs.requires_grad_(True)
    optimiser = torch.optim.Adam([logs], lr=RATE)
    for step in range(STEPS):
        done = step / (STEPS - 1)
        optimiser.param_groups[0]["lr"] = RATE * (1 - done) + 1e-4
        smoothing = typical * WARM ** (1 - done) * COLD**done
        band, server = logs.exp()
        if problem.readings.budget == "printed":
            band = band * 0
        uplink_s = (table + band[:, None] * grid[:, None, None, None]).amin(0)
        optimiser.zero_grad()
        cost = uplink_s + problem.queue_s.unsqueeze(1) + 2 * server[:, None] * problem.work_s.sqrt()
        soft = -smoothing * (-cost / smoothing[..., None]).logsumexp(-1)
        value = soft.sum(1) - (band + server.square()).sum(1)
        (-value / typical[:, 0]).sum().backward()
        with torch.no_grad():
            hard = cost.amin(-1).sum(1) - (band + server.square()).sum(1)
            better = hard > best_value
            best_value = torch.where(better, hard, best_value)
            best = torch.where(better[:, None], logs, best)
        optimiser.step()
    band_price, server_price = best.exp()
    return torch.maximum(bound_at(problem, band_price, server_price), bound_alone(problem))


def bound_alone(problem: Problem) -> Tensor:
    """Give each device its best server for itself, (B,)."""
    problem, links = _without_interference(problem)
    uplink_s = links.convex_cost_s(links.best_share(torch.zeros_like(problem.work_s)))
    return (uplink_s + problem.queue_s.unsqueeze(1) + problem.work_s).amin(-1).sum(1)


def latency_bound_s(problem: Problem) -> Tensor:
    """Bound the mean latency as read from below, over all X, Y and Z, (B,)."""
    decided = lower_bound(problem.for_latency())
    return problem.device_time_s.mean(1) + decided / problem.num_devices


def _without_interference(problem: Problem) -> tuple[Problem, Uplink]:
    """Leave interference out, which can only slow uplinks, and describe all of them."""
    thermal = torch.full_like(problem.noise_w_per_hz, problem.readings.noise_w_per_hz)
    problem = replace(problem, noise_w_per_hz=thermal)
    return problem, uplink_to_all(problem)


def _value(problem: Problem, uplink_s: Tensor, band_price: Tensor, server_price: Tensor) -> Tensor:
    """Let each device choose its server at prices, (B,)."""
    time_s = 2 * server_price.unsqueeze(1) * problem.work_s.sqrt()
    chosen = (uplink_s + problem.queue_s.unsqueeze(1) + time_s).amin(-1).sum(1)
    return chosen - (band_price + server_price.square()).sum(1)


def _first_prices(problem: Problem) -> tuple[Tensor, Tensor]:
    """Take the prices that a good association has, (B, E) each."""
    server = greedy(problem, "square_root", torch.Generator())
    counting = Counting.of(problem, server, has_equal_time=False)
    band = band_prices(uplink(problem, server), server, problem.num_servers)
    return band, counting.per_server(counting.root)
