"""Shares of band and server time for chosen servers.

Shape legend: B networks, M devices, E servers.

With X fixed, I falls apart into a part of Y and a part of Z, and each into servers. `exact` solves
both: it is the minimum of I over Y and Z, so no other allocator, learned or not, can be below it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from uara.control.p1.minmax import meet_alone, min_max_shares
from uara.control.p1.problem import Problem, Shares, at_interference_of, of_pair, uplink
from uara.control.p1.uplink import Uplink
from uara.serving.batching import sum_by_server
from uara.serving.fluid import equal_shares, square_root_shares

PRICE_TOLERANCE = 1e-8  # of the logarithm of a price; what it costs is of second order
LEAST_WORTH = 1e-18  # of a share's price, relative to the most that somebody would pay

Allocate = Callable[[Problem, Tensor], Shares]
AllocatorName = Literal["uniform", "square_root", "exact", "min_max"]


def uniform_bandwidth(problem: Problem, server: Tensor) -> Tensor:
    """Divide each band equally, (B, M); where the budget is the printed one, all have all of it."""
    ones = torch.ones_like(problem.device_time_s)
    if problem.readings.budget == "printed":
        return ones
    return equal_shares(ones, server, problem.num_servers)


def uniform(problem: Problem, server: Tensor) -> Shares:
    """Divide bands and servers equally among their devices."""
    ones = torch.ones_like(problem.device_time_s)
    compute = equal_shares(ones, server, problem.num_servers)
    return Shares(uniform_bandwidth(problem, server), compute)


def best_compute(problem: Problem, server: Tensor) -> Tensor:
    """Minimise the time on servers: z in proportion to the square root of the work, (B, M)."""
    work_s = of_pair(problem.work_s, server)
    return square_root_shares(work_s, server, problem.num_servers)


def square_root(problem: Problem, server: Tensor) -> Shares:
    """Divide bands equally and servers by the square-root rule, which is exact for Z."""
    return Shares(uniform_bandwidth(problem, server), best_compute(problem, server))


def band_prices(links: Uplink, server: Tensor, num_servers: int) -> Tensor:
    """Find the price of each band at which its devices ask for no more than all of it, (B, E).

    The cost of shares is separable and convex, coupled by one sum per server: bisection of the dual
    variable. At the geometric ends -slope(1 / n) of the devices' marginal costs at equal shares,
    all ask for too little or all for too much.

    Args:
        links: of devices to their servers, (B, M).
        server: (B, M) long.
        num_servers: E.

    Returns:
        0 where a band has room for all that pays.
    """
    ones = torch.ones_like(links.device_time_s)
    free = links.best_share(torch.zeros_like(ones))
    has_room = sum_by_server(free, server, num_servers) <= 1
    worth = (-links.slope(equal_shares(ones, server, num_servers))).clamp_min(0)
    top = torch.zeros_like(has_room, dtype=ones.dtype)
    bottom = torch.full_like(top, torch.inf).scatter_reduce(1, server, worth, "amin")
    top = top.scatter_reduce(1, server, worth, "amax").clamp_min(1e-300)
    high = top.log()
    low = torch.maximum(torch.minimum(bottom, top), top * LEAST_WORTH).log()
    low = torch.where(has_room, high, low)
    while bool((high - low > PRICE_TOLERANCE).any()):
        middle = (low + high) / 2
        share = links.best_share(middle.exp().gather(1, server), halvings=36)
        too_much = sum_by_server(share, server, num_servers) > 1
        low = torch.where(too_much, middle, low)
        high = torch.where(too_much, high, middle)
    return torch.where(has_room, 0.0, high.exp())


def best_bandwidth(problem: Problem, server: Tensor) -> Tensor:
    """Minimise the part of I that bandwidth decides, (B, M).

    Where bandwidth costs nothing and brings nothing, bands are divided equally.
    """
    readings = problem.readings
    if readings.sync == "none" and readings.energy_weight == 0:
        return uniform_bandwidth(problem, server)
    problem = at_interference_of(problem, server)
    links = uplink(problem, server)
    if readings.budget == "printed":
        return links.best_share(torch.zeros_like(links.device_time_s))
    price = band_prices(links, server, problem.num_servers)
    share = links.best_share(price.gather(1, server))
    # The price that is left after bisection asks for at most the band, but for rounding.
    total = sum_by_server(share, server, problem.num_servers).gather(1, server)
    return share / total.clamp_min(1)


def exact(problem: Problem, server: Tensor) -> Shares:
    """Minimise I over Y and Z for chosen servers."""
    return Shares(best_bandwidth(problem, server), best_compute(problem, server))


def min_max(problem: Problem, server: Tensor) -> Shares:
    """Minimise the longest latency on each server over Y and Z together.

    Where bandwidth is no matter (its budget or the metric is the printed one), Z alone is left.
    """
    problem = at_interference_of(problem, server)
    links = uplink(problem, server)
    work_s, servers = of_pair(problem.work_s, server), problem.num_servers
    queue_s = problem.queue_s.gather(1, server)
    readings = problem.readings
    if readings.budget == "printed" or readings.latency == "printed":
        bandwidth = uniform_bandwidth(problem, server)
        uplink_s = links.time_s(bandwidth)
        base_s = links.device_time_s + queue_s
        if readings.latency == "overlap":
            base_s = torch.maximum(links.device_time_s, uplink_s) + queue_s
        if readings.latency == "sequential":
            base_s = base_s + uplink_s
        return Shares(bandwidth, meet_alone(base_s, work_s, server, servers))
    return Shares(*min_max_shares(links, work_s, queue_s, server, servers))


ALLOCATORS: dict[AllocatorName, Allocate] = {
    "uniform": uniform,
    "square_root": square_root,
    "exact": exact,
    "min_max": min_max,
}
