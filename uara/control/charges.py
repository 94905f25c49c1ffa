"""What a server costs a request beyond its work: joules, full memory, and the risk of an outage.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.allocation import Allocator
from uara.network import NetworkState, Phase
from uara.prediction import Physics, predict
from uara.radio.link import spectral_efficiency
from uara.serving.batching import sum_by_server
from uara.serving.modes.sd import geometric_tokens

LONGEST_WAIT_S = 600.0  # at a full server that gives nothing back


def outlasts(completion_s: Tensor, limit_s: Tensor) -> Tensor:
    """Compute the probability that a request needs longer than a limit.

    Its time is partly certain (upload, prefill, the shortest answer) and partly exponential; an
    Erlang law of two stages lies between both: P(T > t) = (1 + 2 t / m) exp(-2 t / m), m the mean.

    Args:
        completion_s: mean, any shape.
        limit_s: same shape, may be infinite.
    """
    stages = 2 * limit_s / completion_s.clamp_min(1e-9)
    return torch.where(torch.isinf(limit_s), 0.0, (1 + stages) * torch.exp(-stages))


def airtime_s(state: NetworkState, draft_length: Tensor, physics: Physics) -> Tensor:
    """Compute how long a request would send to each server from now to its end, (B, M, E).

    Prompt and drafts still to be sent over the rate of an equal share, one more device than are
    there now, without interference.

    Args:
        state: links and requests.
        draft_length: (B, M) long.
        physics: link and codec.
    """
    gamma = draft_length.to(state.gain.dtype)
    rounds = state.expected_remaining_tokens / geometric_tokens(state.acceptance, gamma)
    drafts = torch.where(gamma > 0, physics.codec.draft_bits(gamma), 0.0)
    bits = state.upload_bits + rounds * drafts
    at = state.server.clamp_min(0)
    is_there = (state.has_request & (state.server >= 0)).to(state.gain.dtype)
    users = sum_by_server(is_there, at, state.num_servers)[:, None, :]
    own = torch.nn.functional.one_hot(at, state.num_servers) * is_there.unsqueeze(-1)
    share_hz = state.uplink_bandwidth_hz[:, None, :] / (users - own + 1)
    link = physics.config.link
    snr = state.gain * state.power_max_w.unsqueeze(-1) / (link.uplink_noise_w_per_hz * share_hz)
    rate_bps = share_hz * spectral_efficiency(snr, link, "uplink")
    return bits.unsqueeze(-1) / rate_bps.clamp_min(1.0)


def memory_wait_s(state: NetworkState, allocator: Allocator) -> Tensor:
    """Estimate how long a request would wait for KV memory at each server, (B, M, E) seconds.

    What it lacks there over the rate at which memory is given back: each request that holds some
    gives back what it holds by its end within the time predicted for it. Requests wait nowhere
    that they hold memory already.

    Args:
        state: memory and requests.
        allocator: its quick allocation is what the ends are predicted with.
    """
    holds = state.has_request & (state.server >= 0) & (state.kv_tokens > 0)
    at = state.server.clamp_min(0)
    view = state.with_(phase=torch.where(holds, state.phase, int(Phase.IDLE)))
    plan = predict(view, allocator.quick(view, at), allocator.physics, "request")
    claim = state.context_tokens + state.expected_remaining_tokens
    freed = torch.where(holds, claim / plan.remaining_s.clamp_min(1e-3), 0.0)
    freed_per_s = sum_by_server(freed, at, state.num_servers).unsqueeze(1)
    lacks = (claim.unsqueeze(-1) - state.kv_free_tokens.unsqueeze(1)).clamp_min(0)
    wait_s = (lacks / freed_per_s.clamp_min(1e-9)).clamp_max(LONGEST_WAIT_S)
    is_home = torch.nn.functional.one_hot(at, state.num_servers).bool() & holds.unsqueeze(-1)
    return wait_s.masked_fill(is_home, 0.0)


@dataclass(frozen=True)
class Charges:
    """What comes on top of a request's completion time at each server, in seconds."""

    fixed_s: Tensor | None  # (B, M, E)
    outage_in_s: Tensor | None  # (B, E)
    loss_s: Tensor  # (B, M) that an outage before the end would cost

    @classmethod
    def of(
        cls,
        state: NetworkState,
        allocator: Allocator,
        *,
        seconds_per_joule: float = 0.0,
        read_calendar: bool = True,
        wait_for_memory: bool = False,
    ) -> Charges:
        """Tabulate what does not depend on who else is at a server.

        Args:
            state: what is known.
            allocator: names the draft length that is reckoned with.
            seconds_per_joule: price of transmit energy.
            read_calendar: count announced outages.
            wait_for_memory: count the wait for KV memory.
        """
        fixed_s = memory_wait_s(state, allocator) if wait_for_memory else None
        if seconds_per_joule > 0:
            physics = allocator.physics
            length = allocator.quick(state, state.server.clamp_min(0)).draft_length
            efficiency = physics.config.amplifier_efficiency
            power_w = state.power_max_w.unsqueeze(-1) / efficiency
            sending_s = seconds_per_joule * power_w * airtime_s(state, length, physics)
            fixed_s = sending_s if fixed_s is None else fixed_s + sending_s
        soon = state.outage_in_s if read_calendar else None
        if soon is not None and bool(torch.isinf(soon).all()):
            soon = None
        # A lost cache is read anew elsewhere.
        token_s = state.forward_per_token_s.mean(1, keepdim=True)
        return cls(fixed_s, soon, state.context_tokens * token_s)

    @property
    def are_none(self) -> bool:
        """Tell whether time is all that counts."""
        return self.fixed_s is None and self.outage_in_s is None

    def in_order(self, order: Tensor) -> Charges:
        """Return the charges of devices in another order, (B, T) long."""
        fixed_s = self.fixed_s
        if fixed_s is not None:
            fixed_s = fixed_s[torch.arange(len(order)).unsqueeze(1), order]
        return Charges(fixed_s, self.outage_in_s, self.loss_s.gather(1, order))

    def add(self, own_s: Tensor, device: int) -> Tensor:
        """Add the charges of a device of each network to its completion times (B, E)."""
        charged_s = own_s
        if self.fixed_s is not None:
            charged_s = charged_s + self.fixed_s[:, device]
        if self.outage_in_s is not None:
            risk = outlasts(own_s, self.outage_in_s)
            charged_s = charged_s + risk * self.loss_s[:, device].unsqueeze(-1)
        return charged_s
