"""Rules that score each server for each device, by radio, speed and load.

Shape legend: B networks, M devices, E servers.

They choose when a request starts and keep its server while it lives, since a change costs a
prefill. Ties go to the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.errors import UserError
from uara.network import NetworkState
from uara.radio.interference import mean_density_w_per_hz, uplink_noise_by_pair_w_per_hz
from uara.radio.link import rate_bps
from uara.serving.batching import sum_by_server

AssociationRule = Callable[[NetworkState, Allocator, torch.Generator], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]  # of servers (B, E) by device (B,) and loads (B, E)


def keep_or(state: NetworkState, fresh: Tensor) -> Tensor:
    """Keep the server of a running request while it is in reach, else take the fresh choice."""
    current = state.server.clamp_min(0)
    in_reach = state.reachable.gather(2, current.unsqueeze(-1)).squeeze(-1)
    return torch.where((state.server >= 0) & in_reach, current, fresh)


def best_in_reach(score: Tensor, state: NetworkState) -> Tensor:
    """Take the reachable server of highest score (B, M, E); the first of equals."""
    return torch.where(state.reachable, score, -torch.inf).argmax(-1)


def strongest_first(state: NetworkState) -> Tensor:
    """Order devices by their best gain, those with a request first, (B, M) long."""
    best_gain = torch.where(state.has_request, state.gain.amax(-1), -1.0)
    return best_gain.argsort(dim=1, descending=True, stable=True)


def oldest_first(state: NetworkState) -> Tensor:
    """Order devices by the arrival of their requests, equals by their best gain, (B, M) long."""
    order = strongest_first(state)
    age_s = torch.where(state.has_request, state.age_s, -1.0).gather(1, order)
    return order.gather(1, age_s.argsort(dim=1, descending=True, stable=True))


def requests_by_server(state: NetworkState, server: Tensor, counts: Tensor) -> Tensor:
    """Count the devices of each server and the foreign rows in its batch, (B, E).

    Args:
        state: foreign rows.
        server: (B, M) long.
        counts: (B, M) bool, who is counted.
    """
    load = sum_by_server(counts.to(state.gain.dtype), server, state.num_servers)
    return load + state.foreign_rows


def random(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose uniformly among the servers in reach: those whose SNR is above the threshold."""
    return keep_or(state, best_in_reach(torch.rand(state.gain.shape, generator=generator), state))


def max_gain(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server of the highest gain."""
    return keep_or(state, best_in_reach(state.gain, state))


def max_sinr(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server of the highest uplink SINR.

    Where each has a band of its own that is the strongest one. In a shared band every device with a
    request disturbs with its power all the time, from the server that it has or its strongest one.
    """
    link, strongest = allocator.physics.config.link, max_gain(state, allocator, generator)
    if link.interference == "orthogonal":
        return strongest
    power_w = state.power_max_w
    band_hz = state.uplink_bandwidth_hz.gather(1, strongest)
    density = mean_density_w_per_hz(power_w, band_hz, state.has_request.to(power_w.dtype))
    noise = uplink_noise_by_pair_w_per_hz(link, state.gain, strongest, density)
    return keep_or(state, best_in_reach(state.gain / noise, state))


def max_compute(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server whose forward pass is fastest, as everybody does."""
    return keep_or(
        state, best_in_reach(-state.forward_fixed_s[:, None, :].expand_as(state.gain), state)
    )


def bias_cre(
    state: NetworkState,
    allocator: Allocator,
    generator: torch.Generator,
    *,
    bias_db: tuple[float, ...] = (),
    speed_bias_db: float = 0.0,
) -> Tensor:
    """Choose the highest gain in dB plus the server's bias: cell range expansion (3GPP TS 36.300).

    Args:
        state: gains and reach.
        allocator: not asked.
        generator: not asked.
        bias_db: per server, in order; empty: none but the next one.
        speed_bias_db: per doubling of a server's speed over the slowest one's.

    Raises:
        UserError: if the biases are not one per server.
    """
    if bias_db and len(bias_db) != state.num_servers:
        raise UserError(
            f"bias_db has {len(bias_db)} entries but there are {state.num_servers} servers; give "
            "one per server, or none"
        )
    slowest_s = state.forward_fixed_s.amax(1, keepdim=True)
    bias = speed_bias_db * (slowest_s / state.forward_fixed_s).log2()
    if bias_db:
        bias = bias + torch.tensor(bias_db, dtype=bias.dtype)
    return keep_or(state, best_in_reach(10 * state.gain.log10() + bias.unsqueeze(1), state))


def least_loaded(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the server with the fewest requests; who has waited longest chooses first."""
    return one_by_one(state, oldest_first(state), lambda device, load: -load)


def max_compute_share(
    state: NetworkState, allocator: Allocator, generator: torch.Generator
) -> Tensor:
    """Choose the largest speed per request, F / (n + 1); new requests choose in random order."""
    order = torch.rand(state.server.shape, generator=generator).argsort(1)
    return one_by_one(state, order, lambda device, load: 1 / (state.forward_fixed_s * (load + 1)))


def max_rate_share(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
    """Choose the highest uplink rate in an equal share of the band; strongest devices first.

    Foreign rows are in the batch but not on the air, so they do not count.
    """
    link = allocator.physics.config.link
    power_w = state.power_max_w

    def share_bps(device: Tensor, load: Tensor) -> Tensor:
        gain = _row(state.gain, device)
        share_hz = state.uplink_bandwidth_hz / (load - state.foreign_rows + 1)
        own_w = power_w.gather(1, device[:, None])
        return rate_bps(gain, own_w, share_hz, link.uplink_noise_w_per_hz, link, "uplink")

    return one_by_one(state, strongest_first(state), share_bps)


def one_by_one(state: NetworkState, order: Tensor, score: Score) -> Tensor:
    """Let new requests choose one after the other, each by the loads that it finds.

    A request whose server went out of reach chooses again, as a new one does.

    Args:
        state: requests, reach and foreign rows.
        order: (B, M) long, of devices.
        score: of servers for one device per network, (B, E), by their requests (B, E).

    Returns:
        (B, M) long.
    """
    server = keep_or(state, torch.full_like(state.server, -1))
    placed = state.has_request & (server >= 0)
    server = server.clamp_min(0)
    load = requests_by_server(state, server, placed)
    is_new = (state.has_request & ~placed).gather(1, order)
    for turn in is_new.any(0).nonzero().squeeze(1).tolist():
        device, chooses = order[:, turn], is_new[:, turn, None]
        scores = score(device, load).masked_fill(~_row(state.reachable, device), -torch.inf)
        choice = scores.argmax(1, keepdim=True)
        current = server.gather(1, device[:, None])
        server = server.scatter(1, device[:, None], torch.where(chooses, choice, current))
        load = load.scatter_add(1, choice, chooses.to(load.dtype))
    return server


def _row(pairs: Tensor, device: Tensor) -> Tensor:
    """Take one device's row of (B, M, E), (B, E)."""
    return pairs[torch.arange(len(device)), device]
