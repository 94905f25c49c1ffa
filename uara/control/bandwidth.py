"""Rules for the uplink bandwidth of devices that share a server's band.

Shape legend: B networks, M devices, E servers.

A rule takes the servers and draft lengths as given, reckons with full power, and leaves out devices
without a request. `square_root` holds bit/s/Hz fixed; `least_sum`, `equal_finish`, `goodput` and
`proportional_fair` are exact where a thinner spread meets less noise (`shannon`). Where the tables
of `mcs` make the rate a staircase they hold bit/s/Hz fixed too, and no link is spread to death.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from uara.control.band_split import SharedBand, Worth, split_at_one_price, split_for_one_finish
from uara.control.joint_min_max import joint_shares
from uara.control.noise_density import RateCurve
from uara.control.request_work import RequestWork, request_work
from uara.control.uplink_conditions import (
    MIN_EFFICIENCY,
    equal_share_hz,
    expected_uplink_noise,
    rate_curves,
    uplink_efficiency,
)
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.radio.link import LinkConfig
from uara.serving.batching import sum_by_server
from uara.serving.modes.sd import geometric_tokens

MIN_OTHER_S = 1e-3  # of a request, so that the worth of a hertz falls
HALVINGS = 6  # of the equal share, until a link counts as dead at any width

BandwidthRule = Callable[[NetworkState, Tensor, Tensor, Physics], Tensor]


def split_band(weight: Tensor, state: NetworkState, server: Tensor) -> Tensor:
    """Split each server's band in proportion to weights; the budget always holds.

    Args:
        weight: (B, M) >= 0, 0 for devices without a request.
        state: bands.
        server: (B, M) long.

    Returns:
        (B, M) hertz.
    """
    total = sum_by_server(weight, server, state.num_servers).gather(1, server)
    band = state.uplink_bandwidth_hz.gather(1, server)
    return band * weight / total.clamp_min(1e-30)


def equal(state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics) -> Tensor:
    """Give every device with a request on a server the same bandwidth, (B, M)."""
    return equal_share_hz(state, server)


def demand(state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics) -> Tensor:
    """Give bandwidth in proportion to the remaining uplink bits, (B, M)."""
    return _Uplinks.of(state, server, draft_length, physics).split(
        lambda uplinks: uplinks.work.bits
    )


def square_root(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Minimise the sum of the remaining uplink times over the band of each server, (B, M).

    With c_i = remaining uplink bits over spectral efficiency, sum c_i / b_i under sum b_i = W is
    least at b_i proportional to sqrt(c_i). The remaining bits are the rest of the prompt and the
    drafts of the rounds still expected; the efficiency is taken at the equal share, at full power
    and without the interference of others.
    """
    gamma = draft_length.to(state.gain.dtype)
    tokens = geometric_tokens(state.acceptance, gamma)
    rounds = state.expected_remaining_tokens / tokens
    drafts = torch.where(gamma > 0, physics.codec.draft_bits(gamma), 0.0)
    bits = state.upload_bits + rounds * drafts
    link = physics.config.link
    share_hz = equal(state, server, draft_length, physics)
    efficiency = uplink_efficiency(state, server, share_hz, link)
    cost = bits / efficiency.clamp_min(MIN_EFFICIENCY)
    weight = torch.where(state.has_request, cost.sqrt(), 0.0)
    if link.adaptation == "mcs":
        return _split_by_tables(weight, share_hz, efficiency > 0, state, server, link)
    return split_band(weight, state, server)


def least_sum(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Minimise the sum of the remaining uplink times over the band of each server, (B, M).

    What `square_root` does where bit/s/Hz do not depend on the bandwidth.
    """

    def split(uplinks: _Uplinks) -> Tensor:
        bits = uplinks.bits
        worth = Worth(bits, torch.ones_like(bits), torch.zeros_like(bits), 2.0)
        return split_at_one_price(uplinks.curve, worth, uplinks.shared)

    return _Uplinks.of(state, server, draft_length, physics).split(split)


def equal_finish(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Minimise the longest remaining time of a server's requests, (B, M).

    All that have something to send then finish together: other time + bits / R(b) is the same.
    One hopeless link takes nearly the whole band, as the least maximum demands.
    """

    def split(uplinks: _Uplinks) -> Tensor:
        other_s = uplinks.work.other_s.double()
        return split_for_one_finish(uplinks.curve, uplinks.bits, other_s, uplinks.shared)

    return _Uplinks.of(state, server, draft_length, physics).split(split)


def goodput(state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics) -> Tensor:
    """Maximise the sum of answer tokens per second of remaining time, (B, M).

    With tokens E, other time a and bits D that is the sum of E / (a + D / R(b)); at fixed bit/s/Hz
    e and c = D / e it is b = max(0, sqrt(E c / mu) - c) / a at a price mu. Those whose answers are
    dear in bits may get nothing.
    """

    def split(uplinks: _Uplinks) -> Tensor:
        bits, work = uplinks.bits, uplinks.work
        other_s = work.other_s.double().clamp_min(MIN_OTHER_S)
        # A millibit of answer keeps the worth of a request positive that expects no more tokens.
        scale = work.tokens.double().clamp_min(1e-3) * bits
        return split_at_one_price(uplinks.curve, Worth(scale, other_s, bits, 2.0), uplinks.shared)

    return _Uplinks.of(state, server, draft_length, physics).split(split)


def proportional_fair(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Maximise the sum of the logarithms of the rates of devices with a request, (B, M).

    Equal shares where bit/s/Hz do not depend on the bandwidth.
    """

    def split(uplinks: _Uplinks) -> Tensor:
        one = torch.ones_like(uplinks.curve.snr_hz)
        everybody = replace(uplinks.shared, sends=state.has_request)
        return split_at_one_price(
            uplinks.curve, Worth(one, one, torch.zeros_like(one), 1.0), everybody
        )

    return _Uplinks.of(state, server, draft_length, physics).split(split)


def joint_min_max(
    state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
) -> Tensor:
    """Take the band's part of the least longest time over band and compute together, (B, M)."""

    def split(uplinks: _Uplinks) -> Tensor:
        return joint_shares(state, uplinks.decision, physics, uplinks.work).bandwidth_hz

    return _Uplinks.of(state, server, draft_length, physics).split(split)


@dataclass(frozen=True)
class _Uplinks:
    """What a rule needs to know of the uplinks, read off a prediction at equal shares."""

    state: NetworkState
    decision: Decision
    link: LinkConfig
    work: RequestWork
    noise_w_per_hz: Tensor | None  # (B, M) with interference; None: the receiver's alone

    @classmethod
    def of(
        cls, state: NetworkState, server: Tensor, draft_length: Tensor, physics: Physics
    ) -> _Uplinks:
        share_hz, link = equal_share_hz(state, server), physics.config.link
        decision = Decision(server, share_hz, state.power_max_w, draft_length)
        work, noise = request_work(state, decision, physics), None
        if link.interference == "reuse1":
            noise = expected_uplink_noise(state, work.prediction, server, state.power_max_w, link)
        return cls(state, decision, link, work, noise)

    @cached_property
    def curve(self) -> RateCurve:
        """What a band carries, (B, M) float64."""
        return rate_curves(self.state, self.decision.server, self.link, self.noise_w_per_hz)

    @cached_property
    def bits(self) -> Tensor:
        """Bits to send, (B, M) float64, positive also where there are none."""
        return self.work.bits.double().clamp_min(1.0)

    @cached_property
    def shared(self) -> SharedBand:
        """Those who have something to send."""
        server = self.decision.server
        band_hz = self.state.uplink_bandwidth_hz.gather(1, server).double()
        return SharedBand(band_hz, self.work.bits > 0, server, self.state.num_servers)

    def split(self, rule: Callable[[_Uplinks], Tensor]) -> Tensor:
        """Split by a rule; with `mcs` no link is spread to death, (B, M) hertz."""
        split = rule(self).to(self.state.gain.dtype)
        server, link, share_hz = self.decision.server, self.link, self.decision.bandwidth_hz
        if link.adaptation != "mcs":
            return split_band(split, self.state, server)
        lives = uplink_efficiency(self.state, server, share_hz, link, self.noise_w_per_hz) > 0
        return _split_by_tables(
            split, share_hz, lives, self.state, server, link, self.noise_w_per_hz
        )


def _split_by_tables(
    weight: Tensor,
    share_hz: Tensor,
    is_alive: Tensor,
    state: NetworkState,
    server: Tensor,
    link: LinkConfig,
    noise_w_per_hz: Tensor | None = None,
) -> Tensor:
    """Split bands where a link dies that spreads its power too thinly.

    A link that is dead at the equal share keeps the widest of its halves, quarters, ... at which it
    lives; the others split the rest, and none of them is widened to death.

    Args:
        weight: (B, M) of those that live at the equal share.
        share_hz: (B, M) the equal share.
        is_alive: (B, M) bool, whether a link lives at it.
        state: bands, gains and powers.
        server: (B, M) long.
        link: noise and tables.
        noise_w_per_hz: (B, M) with interference; None: the receiver's noise alone.
    """
    is_dead = ~is_alive & state.has_request
    narrow_hz = share_hz / 2**HALVINGS
    for halving in range(HALVINGS - 1, 0, -1):
        wider_hz = share_hz / 2**halving
        lives = uplink_efficiency(state, server, wider_hz, link, noise_w_per_hz) > 0
        narrow_hz = torch.where(lives, wider_hz, narrow_hz)
    kept_hz = torch.where(is_dead, narrow_hz, 0.0)
    weight = torch.where(is_alive, weight, 0.0)
    totals = sum_by_server(
        torch.stack((weight, kept_hz)), server.expand(2, *server.shape), state.num_servers
    )
    total, kept = totals.gather(-1, server.expand(2, *server.shape))
    rest_hz = state.uplink_bandwidth_hz.gather(1, server) - kept
    split_hz = rest_hz * weight / total.clamp_min(1e-30)
    dies = uplink_efficiency(state, server, split_hz, link, noise_w_per_hz) <= 0
    split_hz = torch.where(dies, torch.minimum(split_hz, share_hz), split_hz)
    return torch.where(is_dead, kept_hz, split_hz)


BANDWIDTH_RULES: dict[str, BandwidthRule] = {
    "equal": equal,
    "demand": demand,
    "square_root": square_root,
    "least_sum": least_sum,
    "equal_finish": equal_finish,
    "goodput": goodput,
    "proportional_fair": proportional_fair,
    "joint_min_max": joint_min_max,
}
