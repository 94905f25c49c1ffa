"""What a request pays at least for being one of n users of a server, whoever the others are.

Shape legend: I devices with a request, E servers, N loads (1 to I users), G draft lengths. One
network, float64. The proof that sums of these costs bound the prediction stands in
`docs/control.md`; its symbols are given here in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.objective import request_weight
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict
from uara.radio.link import rate_bps
from uara.rates import MIN_RATE_BPS
from uara.serving.modes import MODES, ServingMode
from uara.serving.transfer import kv_transfer_s

MODES_WITH_BOUND = ("sd", "server_ar")
LEAST_RESIDUAL, MOST_RESIDUAL = 0.25, 0.75  # range of `uara.serving.batching.residual_share`
SECTIONS = 32  # of the golden-section search: the interval shrinks by 2e-7
ROUNDING = 1e-6  # seconds that the search and float64 may be off by
GOLDEN = (math.sqrt(5) - 1) / 2


def check_physics(physics: Physics) -> None:
    """Refuse physics that the bound was not derived for.

    Raises:
        UserError: if they are such.
    """
    config = physics.config
    if config.mode not in MODES_WITH_BOUND or config.service != "batched":
        raise UserError(
            f"the lower bound knows modes {' and '.join(MODES_WITH_BOUND)} with batched service, "
            f"not mode {config.mode} with {config.service} service; set physics.mode and "
            "physics.service accordingly"
        )
    if config.link.adaptation != "shannon":
        raise UserError(
            f"the lower bound needs rates that grow with bandwidth, and link.adaptation is "
            f"{config.link.adaptation}; set it to shannon"
        )


@dataclass(frozen=True)
class Rounds:
    """One round of each request with each draft length; nothing of it depends on who else is there.

    Seconds unless said otherwise.
    """

    weight: Tensor  # (I, 1) requests that wait for this one, itself included [w]
    per_round: Tensor  # (I, G) weight times rounds to come [a]
    is_drafting: Tensor  # (G,) bool, not 0
    draft_bits: Tensor  # (G,) [D]
    draft_s: Tensor  # (I, G)
    verdict_bits: Tensor  # (I, G)
    own_s: Tensor  # (I, E, G) that the request adds to a pass [o]
    alone_s: Tensor  # (I, E, G) a pass that carries this request alone [s]

    @classmethod
    def of(cls, state: NetworkState, physics: Physics) -> Rounds:
        """Work the rounds out; `state` holds one network of devices with a request."""
        config, codec = physics.config, physics.codec
        longest = 0 if config.mode == "server_ar" else config.max_draft_length
        lengths = torch.arange(longest + 1, dtype=torch.float64)
        plain, drafting = MODES["server_ar"], MODES[config.mode]
        alpha = state.acceptance[0, :, None]
        gamma = lengths.expand(len(alpha), -1)
        is_drafting = lengths > 0

        def per_length(value: Callable[[ServingMode], Tensor]) -> Tensor:
            return torch.where(is_drafting, value(drafting), value(plain).expand_as(gamma))

        tokens = per_length(lambda mode: mode.expected_tokens(alpha, gamma))
        verdict = per_length(lambda mode: mode.verdict_bits(codec, alpha, gamma))
        new_tokens = per_length(lambda mode: mode.new_tokens(alpha, gamma))
        row_s, token_s = state.forward_per_row_s[0], state.forward_per_token_s[0]
        context_s = state.context_tokens[0, :, None] * state.forward_per_context_s[0]
        own_s = (row_s + context_s)[..., None] + new_tokens[:, None, :] * token_s[:, None]
        base_s = state.forward_fixed_s[0] + state.foreign_rows[0] * (row_s + token_s)
        weight = request_weight(state)[0, :, None]
        return cls(
            weight=weight,
            per_round=weight * state.expected_remaining_tokens[0, :, None] / tokens,
            is_drafting=is_drafting,
            draft_bits=torch.where(is_drafting, codec.draft_bits(lengths), 0.0),
            draft_s=state.draft_time_s[0, :, None] * lengths,
            verdict_bits=verdict,
            own_s=own_s,
            alone_s=base_s[:, None] + own_s,
        )


@dataclass(frozen=True)
class LoadCosts:
    """The terms of c(i, j, n), as functions of the bandwidth b that is still to be chosen.

    c = min over b and draft lengths of fixed + sent / R(b) + by_presence x + by_capped
    min(x, cap) + price b, with the presence x = s / (cycle + D / R(b)) and the price of a hertz.
    """

    fixed_s: Tensor  # (I, E, N, G)
    sent_bits: Tensor  # (I, 1, 1, G) weighted, of prompts and drafts still to come
    by_presence_s: Tensor  # (I, E, N, G)
    by_capped_s: Tensor  # (I, E, N, 1)
    cap: Tensor  # (E, N)
    alone_s: Tensor  # (I, E, 1, G)
    cycle_s: Tensor  # (I, E, N, G) of a round without the uplink, at most
    draft_bits: Tensor  # (G,)
    is_possible: Tensor  # (I, E, N) bool, in reach and with as many mates in reach
    band_hz: Tensor  # (E,)
    gain: Tensor  # (I, E)
    power_w: Tensor  # (I,)
    physics: Physics

    @classmethod
    def of(cls, state: NetworkState, physics: Physics) -> LoadCosts:
        """Collect the terms; `state` holds one network, float64, of devices with a request."""
        rounds = Rounds.of(state, physics)
        reach = state.reachable[0]
        count = state.num_devices
        loads = torch.arange(1, count + 1)
        is_possible = reach[..., None] & (loads <= reach.sum(0)[:, None])
        away_s = _away_s(state, physics, rounds, loads)
        most_own_s = rounds.own_s.amax(-1)
        largest_s = -_least_of_mates(-most_own_s[..., None].expand(-1, -1, count), reach)
        # Only a request that drafts meets passes in progress, and only those of others.
        meets = (loads > 1) | (state.foreign_rows[0, :, None] > 0)
        meets = meets[..., None] & rounds.is_drafting
        longest_pass_s = rounds.alone_s[:, :, None] + largest_s[..., None]
        cycle_s = rounds.alone_s[:, :, None] + meets * MOST_RESIDUAL * longest_pass_s + away_s
        cap = _typical_presence(state, physics, rounds, cycle_s, reach)
        queue = _Queue.of(state, physics, rounds.weight, reach)
        waits = _Waits.of(state, physics, rounds, reach, cap)
        mates_rounds = _least_of_mates(
            rounds.per_round.amin(-1)[:, None, None].expand(-1, reach.shape[1], count), reach
        )
        own_pass_s = rounds.per_round[:, None, None] * (away_s + rounds.alone_s[:, :, None])
        return cls(
            fixed_s=own_pass_s + waits.own_s + queue.fixed_s[..., None],
            sent_bits=(
                rounds.weight * state.upload_bits[0, :, None] + rounds.per_round * rounds.draft_bits
            )[:, None, None],
            by_presence_s=rounds.own_s[:, :, None] * mates_rounds[..., None],
            by_capped_s=(waits.by_capped_s + queue.by_busy_s * _chord(cap, loads))[..., None],
            cap=cap,
            alone_s=rounds.alone_s[:, :, None],
            cycle_s=cycle_s,
            draft_bits=rounds.draft_bits,
            is_possible=is_possible,
            band_hz=state.uplink_bandwidth_hz[0],
            gain=state.gain[0],
            power_w=state.power_max_w[0],
            physics=physics,
        )

    def least(self, price_s_per_hz: Tensor) -> tuple[Tensor, Tensor]:
        """Minimise over bandwidth and draft length.

        Args:
            price_s_per_hz: (E, N) >= 0.

        Returns:
            costs and the bandwidths that they are had at, (I, E, N) each; infinity and 0 where
            `is_possible` is not.
        """
        capped_s = self.by_capped_s.expand_as(self.fixed_s)
        # min(x, cap) is the lesser of both, and each is convex by itself.
        by_presence_s = torch.cat((self.by_presence_s + capped_s, self.by_presence_s), -1)
        more_s = torch.cat((torch.zeros_like(capped_s), capped_s * self.cap[..., None]), -1)
        value, band_hz = self._over_bandwidth(by_presence_s, price_s_per_hz[..., None])
        value = value + _twice(self.fixed_s) + more_s - ROUNDING
        least, at = value.min(-1, keepdim=True)
        impossible = ~self.is_possible
        chosen = band_hz.gather(-1, at).squeeze(-1).masked_fill(impossible, 0)
        return least.squeeze(-1).masked_fill(impossible, torch.inf), chosen

    def _over_bandwidth(self, by_presence_s: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        """Minimise what bandwidth decides by golden sections, (I, E, N, 2 G) seconds and hertz.

        All terms are convex in the seconds per bit 1 / R(b), which fall with b: one minimum.
        """
        sent_bits, draft_bits = _twice(self.sent_bits), _twice(self.draft_bits)
        alone_s, cycle_s = _twice(self.alone_s), _twice(self.cycle_s)

        def cost(log_hz: Tensor) -> Tensor:
            band_hz = log_hz.exp()
            s_per_bit = 1 / self.rate_bps(band_hz)
            presence = alone_s / (cycle_s + draft_bits * s_per_bit)
            return sent_bits * s_per_bit + by_presence_s * presence + price * band_hz

        # Below this bandwidth no link carries more than the least rate that a prediction counts.
        narrowest = math.log(MIN_RATE_BPS / self.physics.config.link.spectral_efficiency_max)
        shape = by_presence_s.shape
        widest = self.band_hz.log()[:, None, None].expand(shape)
        low, high = torch.full(shape, narrowest, dtype=torch.float64), widest
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        at_left, at_right = cost(left), cost(right)
        for _ in range(SECTIONS):
            goes_left = at_left < at_right
            low, high = torch.where(goes_left, low, left), torch.where(goes_left, right, high)
            span = GOLDEN * (high - low)
            fresh = torch.where(goes_left, high - span, low + span)
            at_fresh = cost(fresh)
            kept, at_kept = torch.where(goes_left, left, right), torch.minimum(at_left, at_right)
            left, right = torch.where(goes_left, fresh, kept), torch.where(goes_left, kept, fresh)
            at_left = torch.where(goes_left, at_fresh, at_kept)
            at_right = torch.where(goes_left, at_kept, at_fresh)
        middle = 0.5 * (low + high)
        value, at_widest = cost(middle), cost(widest)
        band_hz = torch.where(value < at_widest, middle, widest).exp()
        value = torch.minimum(value, at_widest)
        # Without spectrum a prediction counts the least rate.
        starved = (sent_bits / MIN_RATE_BPS).expand(shape)
        return torch.minimum(value, starved), torch.where(starved < value, 0.0, band_hz)

    def rate_bps(self, band_hz: Tensor) -> Tensor:
        """Compute uplink rates at full power without interference."""
        link = self.physics.config.link
        gain, power_w = self.gain[..., None, None], self.power_w[:, None, None, None]
        return rate_bps(gain, power_w, band_hz, link.uplink_noise_w_per_hz, link, "uplink")


@dataclass(frozen=True)
class _Waits:
    """Waiting for passes in progress."""

    own_s: Tensor  # (I, E, N, G) at servers that never rest; a credit without drafts
    by_capped_s: Tensor  # (I, E, N) that others wait, per unit of presence

    @classmethod
    def of(
        cls, state: NetworkState, physics: Physics, rounds: Rounds, reach: Tensor, cap: Tensor
    ) -> _Waits:
        damping = 1 - 0.5**physics.config.batching.iterations
        count = len(reach)
        mates = torch.arange(count, dtype=torch.float64)
        is_foreign = (state.foreign_rows[0] > 0)[:, None]
        wait_s = LEAST_RESIDUAL * damping * rounds.alone_s[:, :, None]
        always = rounds.per_round[:, None, None] * wait_s * rounds.is_drafting
        if not rounds.is_drafting.any():
            return cls(torch.zeros_like(always), torch.zeros_like(always[..., 0]))
        # A request that drafts waits at least this long in all, per unit of others' presence.
        least_s = rounds.per_round.amin(-1)[:, None] * wait_s[..., rounds.is_drafting].amin((-1, 2))
        least_s = least_s[..., None].expand(-1, -1, count)
        slope = _chord(cap, mates).masked_fill(is_foreign, 0)
        credit = least_s * slope * mates * cap
        own_s = torch.where(
            is_foreign[..., None], always, -credit[..., None] * (~rounds.is_drafting)
        )
        return cls(own_s, slope * _least_of_mates(least_s, reach))


@dataclass(frozen=True)
class _Queue:
    """Prefill of one's own and of others."""

    fixed_s: Tensor  # (I, E, N)
    by_busy_s: Tensor  # (I, E, N) for all users together, per unit of busy time

    @classmethod
    def of(cls, state: NetworkState, physics: Physics, weight: Tensor, reach: Tensor) -> _Queue:
        """Sum what the first-come, first-served prefill of `predict` costs at least."""
        need, transfer_s = _missing_tokens(state, physics)
        needs = (need > 0).to(need.dtype)
        count = len(need)
        token_s = state.forward_per_token_s[0]
        foreign = state.foreign_prefill_tokens[0]
        busy_token_s = state.forward_fixed_s[0] / physics.config.batching.prefill_chunk_tokens

        def mates(value: Tensor) -> Tensor:
            return _least_of_mates(value[..., None].expand(-1, -1, count), reach)

        own_tokens = need + 0.5 * foreign * needs
        fixed_s = weight * (
            own_tokens * token_s + (1 - 0.5 * needs) * foreign * token_s + transfer_s
        )
        harm_s = (need * token_s)[..., None] * mates(weight.expand_as(need))
        by_busy_s = (weight * own_tokens * busy_token_s)[..., None]
        by_busy_s = by_busy_s + 0.5 * (need * busy_token_s)[..., None] * mates(weight * needs)
        is_foreign = (state.foreign_rows[0] > 0)[:, None]
        shared_s = by_busy_s + _least_of_mates(by_busy_s, reach)
        return cls(
            fixed_s[..., None] + harm_s + by_busy_s * is_foreign,
            shared_s.masked_fill(is_foreign, 0),
        )


def _twice(value: Tensor) -> Tensor:
    return torch.cat((value, value), -1)


def _missing_tokens(state: NetworkState, physics: Physics) -> tuple[Tensor, Tensor]:
    """Find what each server lacks of each context, and how long the rest is on its way, (I, E)."""
    need, transfer_s = [], []
    for j in range(state.num_servers):
        server = torch.full_like(state.server, j)
        decision = Decision(
            server=server,
            bandwidth_hz=torch.ones_like(state.age_s),
            power_w=state.power_max_w,
            draft_length=torch.zeros_like(server),
        )
        need.append(predict(state, decision, physics, "request").prefill_tokens[0])
        moves = state.kv_arriving_tokens is not None
        transfer_s.append(kv_transfer_s(state, server)[0] if moves else torch.zeros_like(need[-1]))
    return torch.stack(need, -1), torch.stack(transfer_s, -1)


def _away_s(state: NetworkState, physics: Physics, rounds: Rounds, loads: Tensor) -> Tensor:
    """Compute a round's drafting, verdict and path, (I, E, N, G); 0 without drafts.

    The downlink is divided equally among the users, so it is known.
    """
    link, share = physics.config.link, 1 / loads.to(torch.float64)
    rate = rate_bps(
        state.gain[0, ..., None],
        state.downlink_power_w[0, :, None] * share,
        state.downlink_bandwidth_hz[0, :, None] * share,
        link.downlink_noise_w_per_hz,
        link,
        "downlink",
    ).clamp_min(MIN_RATE_BPS)
    down_s = rounds.verdict_bits[:, None, None] / rate[..., None]
    away_s = rounds.draft_s[:, None, None] + down_s + state.rtt_s[0][:, None, None]
    return away_s * rounds.is_drafting


def _typical_presence(
    state: NetworkState, physics: Physics, rounds: Rounds, cycle_s: Tensor, reach: Tensor
) -> Tensor:
    """Guess the presence of a user, (E, N) in (0, 1]; any guess gives a bound."""
    middle, count = len(rounds.draft_bits) // 2, len(reach)
    link = physics.config.link
    share_hz = state.uplink_bandwidth_hz[0, :, None] / torch.arange(1, count + 1)
    rate = rate_bps(
        state.gain[0, ..., None], state.power_max_w[0, :, None, None], share_hz,
        link.uplink_noise_w_per_hz, link, "uplink",
    ).clamp_min(MIN_RATE_BPS)  # fmt: skip
    up_s = rounds.draft_bits[middle] / rate
    presence = rounds.alone_s[:, :, None, middle] / (cycle_s[..., middle] + up_s)
    inside = reach[..., None].to(presence.dtype)
    typical = (presence * inside).sum(0) / inside.sum(0).clamp_min(1)
    return typical.clamp(0.05, 1.0)


def _chord(cap: Tensor, number: Tensor) -> Tensor:
    """Compute the slope of 1 - (1 - s / m)^m between 0 and s = m cap, (E, N).

    The chance that one of m requests of presences x sits in a pass is at least slope times the sum
    of min(x, cap): it is least for equal presences, concave in their sum, and rises with each.

    Args:
        cap: (E, N).
        number: (N,) m.
    """
    m = number.to(cap.dtype)
    return (1 - (1 - cap) ** m) / (m * cap).clamp_min(1e-12)


def _least_of_mates(value: Tensor, reach: Tensor) -> Tensor:
    """Sum the n - 1 smallest values of other devices in reach of a server, (I, E, N).

    Args:
        value: (I, E, N); N = I.
        reach: (I, E) bool.
    """
    inside = reach[..., None].expand_as(value)
    order = torch.where(inside, value, torch.inf).argsort(dim=0, stable=True)
    rank = order.argsort(dim=0)
    ranked = torch.where(inside, value, 0.0).gather(0, order)
    number = torch.arange(len(value))  # mates
    sums = torch.cat((torch.zeros_like(ranked[:1]), ranked.cumsum(0)))
    at = number.expand(1, value.shape[1], -1)
    fewer, more = sums.gather(0, at), sums.gather(0, at + 1)
    return torch.where(rank < number, more - value, fewer.expand_as(value))
