"""P1 itself: instances of one slot, and what an association X with shares Y and Z costs.

Shape legend: B networks, M devices, E servers. Everything is float64.

X is `server` (B, M) long, one server per device (eqs 2 and 3); Y and Z are `Shares`, the parts of
the chosen server's band and time. `objective` is I of eq 8 as the readings say, `parts` its terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uara.control.p1.readings import P1Config
from uara.control.p1.uplink import Uplink
from uara.radio.interference import uplink_interference_by_pair_w_per_hz
from uara.serving.batching import sum_by_server


@dataclass(frozen=True)
class Problem:
    """What is given in B slots: tasks, machines, links and batteries."""

    readings: P1Config
    device_time_s: Tensor  # (B, M) D^MD
    work_s: Tensor  # (B, M, E) time of the task alone on the server, f^ES / F
    payload_bits: Tensor  # (B, M) d
    gain: Tensor  # (B, M, E) linear
    power_w: Tensor  # (B, M)
    band_hz: Tensor  # (B, E) W_j
    noise_w_per_hz: Tensor  # (B, M, E) thermal, and interference where servers share the band
    queue_s: Tensor  # (B, E) k tau
    compute_energy_j: Tensor  # (B, M) E^CP
    battery: Tensor  # (B, M) B_i, joules or level
    capacity_flop_per_s: Tensor  # (B, E) F

    @property
    def num_networks(self) -> int:
        """B."""
        return self.gain.shape[0]

    @property
    def num_devices(self) -> int:
        """M."""
        return self.gain.shape[1]

    @property
    def num_servers(self) -> int:
        """E."""
        return self.gain.shape[2]

    def select(self, rows: Tensor) -> Problem:
        """Take networks by index (K,) long, with repetition allowed."""
        chosen = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Problem(readings=self.readings, **chosen)

    def for_latency(self) -> Problem:
        """Read the same instances so that I is the sum of their latencies."""
        return replace(self, readings=self.readings.for_latency())


@dataclass(frozen=True)
class Shares:
    """Y and Z at the chosen servers."""

    bandwidth: Tensor  # (B, M) in [0, 1] of the server's band
    compute: Tensor  # (B, M) in [0, 1] of the server's time


@dataclass(frozen=True)
class Parts:
    """Terms of I and what they are made of, (B, M) each."""

    device_s: Tensor  # D^MD
    uplink_s: Tensor  # U = d / R
    server_s: Tensor  # work over share
    queue_s: Tensor  # k tau
    sync_s: Tensor  # what U costs beside D, as read
    compute_energy_j: Tensor
    radio_energy_j: Tensor
    compute_energy_s: Tensor  # w E^CP / B
    radio_energy_s: Tensor  # w E^CM / B

    @property
    def decided_s(self) -> Tensor:
        """Add up what a device contributes to I and X, Y, Z decide."""
        return self.queue_s + self.server_s + self.sync_s + self.radio_energy_s

    @property
    def cost_s(self) -> Tensor:
        """Add up what a device contributes to I."""
        return self.device_s + self.compute_energy_s + self.decided_s


def of_pair(values: Tensor, server: Tensor) -> Tensor:
    """Take the values (B, M, E) of each device at its server, (B, M)."""
    return values.gather(2, server.unsqueeze(-1)).squeeze(-1)


def uplink(problem: Problem, server: Tensor) -> Uplink:
    """Describe the uplinks (B, M) to chosen servers."""
    return Uplink.of(
        problem.readings,
        device_time_s=problem.device_time_s,
        payload_bits=problem.payload_bits,
        snr_hz=of_pair(problem.gain, server) * problem.power_w
        / of_pair(problem.noise_w_per_hz, server),
        band_hz=problem.band_hz.gather(1, server),
        power_w=problem.power_w,
        battery=problem.battery,
    )  # fmt: skip


def uplink_to_all(problem: Problem) -> Uplink:
    """Describe the uplinks (B, M, E) of all pairs."""
    power_w = problem.power_w.unsqueeze(-1)
    return Uplink.of(
        problem.readings,
        device_time_s=problem.device_time_s.unsqueeze(-1),
        payload_bits=problem.payload_bits.unsqueeze(-1),
        snr_hz=problem.gain * power_w / problem.noise_w_per_hz,
        band_hz=problem.band_hz.unsqueeze(1),
        power_w=power_w,
        battery=problem.battery.unsqueeze(-1),
    )


def at_interference_of(problem: Problem, server: Tensor) -> Problem:
    """Let devices on chosen servers disturb each other where all servers use the whole band.

    Everybody is taken to transmit all the time with its power over the whole band. Where bands are
    orthogonal the problem comes back as it is.
    """
    if problem.readings.interference == "orthogonal":
        return problem
    density = problem.power_w / problem.readings.bandwidth_hz
    heard = uplink_interference_by_pair_w_per_hz(problem.gain, server, density)
    return replace(problem, noise_w_per_hz=problem.readings.noise_w_per_hz + heard)


def parts(problem: Problem, server: Tensor, shares: Shares) -> Parts:
    """Compute the terms of I, each (B, M).

    Args:
        problem: instances; where servers share the band, the interference is that of `server`.
        server: (B, M) long.
        shares: Y and Z, positive.
    """
    problem = at_interference_of(problem, server)
    links = uplink(problem, server)
    uplink_s = links.time_s(shares.bandwidth)
    radio_j = links.energy_j(shares.bandwidth, uplink_s)
    per_joule = problem.readings.energy_weight / problem.battery
    return Parts(
        device_s=problem.device_time_s,
        uplink_s=uplink_s,
        server_s=of_pair(problem.work_s, server) / shares.compute,
        queue_s=problem.queue_s.gather(1, server),
        sync_s=links.sync_s(uplink_s),
        compute_energy_j=problem.compute_energy_j,
        radio_energy_j=radio_j,
        compute_energy_s=per_joule * problem.compute_energy_j,
        radio_energy_s=per_joule * radio_j,
    )


def objective(problem: Problem, server: Tensor, shares: Shares) -> Tensor:
    """Compute I of eq 8 as the readings say, (B,)."""
    return parts(problem, server, shares).cost_s.sum(1)


def decided_objective(problem: Problem, server: Tensor, shares: Shares) -> Tensor:
    """Compute I without the terms that no decision changes, (B,).

    They are drafting times and E^CP. As printed, E^CP is so large that nothing else is left of I
    in double precision; decisions are compared by this.
    """
    return parts(problem, server, shares).decided_s.sum(1)


def mean_latency_s(problem: Problem, server: Tensor, shares: Shares) -> Tensor:
    """Compute the metric `average latency` as the readings say, (B,)."""
    return objective(problem.for_latency(), server, shares) / problem.num_devices


def excess(problem: Problem, server: Tensor, shares: Shares) -> Tensor:
    """Compute by how much the worst budget is exceeded (eqs 4 and 7), (B,); 0 where all hold.

    A share below 0 or above 1 counts as exceeding too. Where the budget of bandwidth is read as
    printed, one server per device leaves nothing to add up.
    """
    servers = problem.num_servers
    over = sum_by_server(shares.compute, server, servers).amax(1) - 1
    if problem.readings.budget == "repaired":
        band = sum_by_server(shares.bandwidth, server, servers).amax(1) - 1
        over = torch.maximum(over, band)
    both = torch.cat((shares.bandwidth, shares.compute), dim=1)
    outside = torch.maximum(-both.amin(1), both.amax(1) - 1)
    return torch.maximum(over, outside).clamp_min(0)
