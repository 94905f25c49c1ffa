"""Shares of band and server time that make the slowest device of each server as fast as can be.

Shape legend: B networks, M devices, E servers.

A deadline T can be met on a server if shares y and z exist with u + w / z <= s for each device,
where s is what T leaves it, u its uplink time and w its work alone. For a price nu of server time
against bandwidth each device minimises y + nu z by itself. If then both sums are at most 1, T can
be met; if both are above 1 it cannot (weak duality); else the price has to move. So one loop
narrows the bracket of T or that of nu in every turn, on all servers at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uara.control.p1.uplink import SMALLEST_SHARE, Uplink
from uara.serving.batching import sum_by_server
from uara.serving.fluid import equal_shares

LOG_PRICE = 35.0  # largest logarithm of a price, either sign
TURNS = 2000
HALVINGS = 34
TOLERANCE = 1e-9  # of a deadline, relative
MARGIN = 64.0  # how far a price may be from the last one, in widths of the deadline's bracket


def meet_alone(base_s: Tensor, work_s: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Minimise max(base + work / z) over the shares z of each server, (B, M).

    All end together, at the deadline at which work / (deadline - base) adds up to 1: bisection.

    Args:
        base_s: (B, M) latency besides the server's.
        work_s: (B, M) time alone on the server.
        server: (B, M) long.
        num_servers: E.
    """
    users = sum_by_server(torch.ones_like(work_s), server, num_servers).gather(1, server)
    low = _worst(base_s + work_s, server, num_servers)
    high = _worst(base_s + users * work_s, server, num_servers)
    for _ in range(60):
        middle = (low + high) / 2
        asked = work_s / (middle.gather(1, server) - base_s).clamp_min(1e-300)
        is_short = sum_by_server(asked, server, num_servers) > 1
        low = torch.where(is_short, middle, low)
        high = torch.where(is_short, high, middle)
    return _filled(work_s / (high.gather(1, server) - base_s), server, num_servers)


def min_max_shares(
    links: Uplink, work_s: Tensor, queue_s: Tensor, server: Tensor, num_servers: int
) -> tuple[Tensor, Tensor]:
    """Minimise the longest latency on each server over both shares, (B, M) each.

    Args:
        links: of devices to their servers; `readings.latency` is overlap or sequential.
        work_s: (B, M) time alone on the server.
        queue_s: (B, M) waiting at the server.
        server: (B, M) long.
        num_servers: E.
    """
    overlaps = links.readings.latency == "overlap"
    floor_s = links.device_time_s if overlaps else torch.zeros_like(work_s)
    spent_s = queue_s if overlaps else queue_s + links.device_time_s
    equal = equal_shares(torch.ones_like(work_s), server, num_servers)

    def reached(bandwidth: Tensor, compute: Tensor) -> Tensor:
        uplink_s = torch.maximum(links.time_s(bandwidth), floor_s)
        return _worst(spent_s + uplink_s + work_s / compute, server, num_servers)

    low, high = reached(torch.ones_like(equal), torch.ones_like(equal)), reached(equal, equal)
    # Bands in which everybody can have all that pays need no price of their own.
    most = _cheapest_share(links, work_s, torch.zeros_like(work_s), floor_s, math.exp(LOG_PRICE))
    is_rich = sum_by_server(most, server, num_servers) <= 1
    widest = torch.where(is_rich, LOG_PRICE, -LOG_PRICE)
    bottom, top = widest, torch.full_like(low, LOG_PRICE)
    is_narrow = torch.zeros_like(is_rich)
    bandwidth, compute = equal, equal
    for _ in range(TURNS):
        is_open = high - low > TOLERANCE * high
        if not bool(is_open.any()):
            break
        deadline, log_price = (low + high) / 2, (bottom + top) / 2
        slack_s = deadline.gather(1, server) - spent_s
        price = log_price.exp().gather(1, server)
        y = _cheapest_share(links, work_s, slack_s, floor_s, price)
        z = work_s / (slack_s - torch.maximum(links.time_s(y), floor_s)).clamp_min(1e-300)
        much_y = sum_by_server(y, server, num_servers) > 1
        much_z = sum_by_server(z, server, num_servers) > 1
        can = ~much_y & ~much_z & is_open
        empty = ~can & (top - bottom < 1e-11)
        cannot = ((much_y & much_z) | (empty & ~is_narrow)) & is_open
        chosen = can.gather(1, server)
        bandwidth, compute = torch.where(chosen, y, bandwidth), torch.where(chosen, z, compute)
        high, low = torch.where(can, deadline, high), torch.where(cannot, deadline, low)
        bottom = torch.where(much_z, log_price, bottom)
        top = torch.where(much_y, log_price, top)
        # The next price is near the last; where that proves wrong, all prices are tried again.
        settled = can | cannot
        reach = MARGIN * (high - low) / high.clamp_min(1e-300)
        bottom = torch.where(settled, torch.maximum(log_price - reach, widest), bottom)
        top = torch.where(settled, (log_price + reach).clamp_max(LOG_PRICE), top)
        is_narrow = (is_narrow | settled) & ~(empty & ~settled)
        bottom = torch.where(empty & ~settled, widest, bottom)
        top = torch.where(empty & ~settled, LOG_PRICE, top)
    return _filled(bandwidth, server, num_servers), _filled(compute, server, num_servers)


def _cheapest_share(
    links: Uplink, work_s: Tensor, slack_s: Tensor, floor_s: Tensor, price: Tensor | float
) -> Tensor:
    """Minimise y + price z over the y of a device that ends within its slack, (B, M)."""
    low = torch.full_like(work_s, math.log(SMALLEST_SHARE))
    high = torch.zeros_like(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        uplink_s, per_log = links.time_and_slope(middle.exp())
        left_s = slack_s - uplink_s
        pays = price * work_s * per_log > middle.exp() * left_s.square()
        wants_more = (uplink_s > floor_s) & ((left_s <= 0) | pays)
        low = torch.where(wants_more, middle, low)
        high = torch.where(wants_more, high, middle)
    return high.exp()


def _worst(latency_s: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Take the longest latency of each server's devices, (B, E); 0 without devices."""
    nothing = latency_s.new_zeros((latency_s.shape[0], num_servers))
    return nothing.scatter_reduce(1, server, latency_s, "amax")


def _filled(share: Tensor, server: Tensor, num_servers: int) -> Tensor:
    """Scale shares up so that each server is used up, which slows nobody."""
    return share / sum_by_server(share, server, num_servers).gather(1, server)
