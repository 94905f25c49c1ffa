"""Asynchronous speculation: drafting never stops for a verdict, up to a window of drafts.

Shape legend: P sample paths, then the shape of the parts, usually (B, M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes.cut import BlockLength, cut_at
from uara.serving.modes.native_epoch import epoch_sums, knows
from uara.serving.modes.parts import Effort, RoundParts
from uara.serving.modes.psd import TIME_SPREAD
from uara.serving.modes.sd import geometric_tokens
from uara.serving.payload import Codec

PATHS = 4  # times scatter, so that which pass a draft meets is not decided by a hair's breadth
PATHS_WHILE_SOLVING = 2  # of the fixed point of loads, which asks often
BLOCKS = 8  # drafts followed one by one; behind them the last ones repeat
REPEATED = 4


@dataclass(frozen=True)
class _Epoch:
    """Means per verdict of a run of drafts between two rejections."""

    time_s: Tensor
    passes: Tensor
    new_tokens: Tensor
    tokens: Tensor  # committed


@dataclass(frozen=True)
class _Leg:
    """One draft of an epoch, (P, ...); time 0 is the rejection at the server."""

    reached: Tensor  # chance that all before it were accepted
    length: BlockLength
    draft_s: Tensor
    uplink_s: Tensor
    ready_s: Tensor  # drafted, and let go by the window
    leaves_s: Tensor  # has left the radio
    tested_s: Tensor  # its first token is tested
    pass_from_s: Tensor  # of the pass that it goes through
    pass_to_s: Tensor
    rides: Tensor  # bool: on the pass of the draft before


@cache
def _scatter(paths: int) -> Tensor:
    """Draw factors around 0 for P paths, (P, 2 * BLOCKS + 1), uniform with `TIME_SPREAD`.

    A Latin square per column: its mean is 0 exactly.
    """
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randperm(paths, generator=draw) for _ in range(2 * BLOCKS + 1)]
    centred = (torch.stack(columns, 1) + 0.5) / paths * 2 - 1
    return centred * (TIME_SPREAD * math.sqrt(3))


@dataclass(frozen=True)
class AsynchronousSpeculation:
    """The device drafts on while its drafts are verified, after PicoSpec (arXiv 2603.19133).

    The server tests a draft's first token against the row it keeps, at no cost; a rejection brings
    the correction down at once and voids everything behind it, and the server forwards its
    correction alone. A draft accepted as a whole brings no bonus. A round is a verdict.
    """

    name: str = "async"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = True
    overlaps: bool = True

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute (1 - a^g) / (1 - a): no bonus (arXiv 2603.19133 eq. 5)."""
        return geometric_tokens(alpha, gamma.clamp_min(1) - 1)

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take the tokens of the draft length, or of the drafts that the budget leaves."""
        if parts.draft_budget is None:
            return self.expected_tokens(parts.alpha, parts.gamma)
        return _epoch(parts, PATHS).tokens

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Take all but the corrections: each token was tested, there is no bonus."""
        return tokens * alpha

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Average drafts whose first token was accepted, and corrections forwarded alone."""
        rejected = 1 - alpha**gamma
        return (rejected + gamma * alpha) / (rejected + alpha).clamp_min(1e-6)

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Compute the bits of the draft's frame."""
        return codec.draft_bits(gamma)

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean bits of a verdict."""
        return codec.verdict_bits(gamma, alpha)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Compute the mean time between two verdicts."""
        return _epoch(parts, PATHS).time_s

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back after what a cycle of passes leaves beside wait and pass, at any phase.

        Less than nothing is left where most passes start at the end of the one before.
        """
        epoch = _epoch(parts, PATHS_WHILE_SOLVING)
        think_s = epoch.time_s / epoch.passes - parts.wait_s - parts.verify_s
        share = torch.full_like(think_s, 0.5)
        return Comeback(
            torch.maximum(think_s, -parts.wait_s),
            share,
            epoch.new_tokens / epoch.passes,
            torch.zeros_like(share),
        )

    def effort(self, parts: RoundParts) -> Effort:
        """Count what a rejection voids as well: what was drafted and sent until it came back."""
        if knows(parts, PATHS):
            sums = epoch_sums(parts, _scatter(PATHS))
            return Effort(draft_s=parts.draft_s + sums.ahead_s, drafts=1 + sums.drafts)
        return self.effort_in_torch(parts)

    def effort_in_torch(self, parts: RoundParts) -> Effort:
        """Do what `effort` does without compiled code."""
        legs = _legs(parts, PATHS)
        weights = _Weights.of(parts, legs)
        rejected = weights.rejected
        ahead_s = drafts = torch.zeros(())
        for leg in legs:
            most_s = _until_rest_s(parts, leg)
            for weight, end_s in _ends(parts, leg):
                more_s = torch.minimum(end_s + _back_s(parts) - leg.ready_s, most_s)
                wasted_s = _token_under_way_s(parts) * (more_s < most_s)
                ahead_s = ahead_s + weight * (more_s + wasted_s)
                sent = more_s / leg.draft_s.clamp_min(1e-9) - 0.5
                drafts = drafts + weight * sent.clamp(0, parts.window - 1)
        own_s, own = parts.draft_s, torch.ones(())
        if parts.draft_budget is not None:
            own_s = weights.per_verdict([leg.reached * leg.draft_s for leg in legs]).mean(0)
            sent_s = weights.per_verdict([leg.reached * leg.uplink_s for leg in legs]).mean(0)
            own = torch.where(parts.uplink_s > 0, sent_s / parts.uplink_s.clamp_min(1e-12), 1.0)
        return Effort(
            draft_s=own_s + (rejected * ahead_s).mean(0), drafts=own + (rejected * drafts).mean(0)
        )


@dataclass(frozen=True)
class _Weights:
    """How drafts that were followed, and those that the last ones stand for, count per verdict."""

    rejected: Tensor  # share of verdicts that reject
    beyond: Tensor  # chance that all followed drafts were accepted
    tail: Tensor | float  # verdicts beyond per `beyond`, times `rejected`
    repeated: Tensor

    @classmethod
    def of(cls, parts: RoundParts, legs: list[_Leg]) -> _Weights:
        beyond = legs[-1].reached * legs[-1].length.survives
        repeated = torch.stack([leg.reached for leg in legs[-REPEATED:]]).mean(0)
        if parts.draft_budget is None:
            return cls(1 - legs[-1].length.survives, beyond, 1.0, repeated)
        last = torch.stack([leg.length.survives for leg in legs[-REPEATED:]]).mean(0)
        more = 1 / (1 - last).clamp_min(1e-6)
        rejected = 1 / (torch.stack([leg.reached for leg in legs]).sum(0) + beyond * more)
        return cls(rejected, beyond, rejected * more, repeated)

    def per_verdict(self, each: list[Tensor]) -> Tensor:
        """Add what is counted per draft, the last ones standing for all that follow."""
        tail = torch.stack(each[-REPEATED:]).mean(0)
        share = self.beyond / self.repeated.clamp_min(1e-20)
        return self.rejected * torch.stack(each).sum(0) + tail * share * self.tail


def _epoch(parts: RoundParts, paths: int) -> _Epoch:
    """Follow the drafts behind a rejection; by compiled code where that is possible."""
    if knows(parts, paths):
        sums = epoch_sums(parts, _scatter(paths))
        tokens = geometric_tokens(parts.alpha, parts.gamma.clamp_min(1) - 1)
        return _Epoch(sums.time_s, sums.passes, sums.new_tokens, tokens)
    return _epoch_in_torch(parts, paths)


def _epoch_in_torch(parts: RoundParts, paths: int) -> _Epoch:
    """Follow the drafts behind a rejection, one by one, with the chance that each is reached."""
    gamma = parts.gamma.clamp_min(1)
    time_s = resting = torch.zeros(())
    riders = torch.ones_like(parts.alpha**gamma)
    passes: list[Tensor] = []
    fed: list[Tensor] = []
    legs = _legs(parts, paths)
    for leg in legs:
        # Whoever waits when a pass starts goes along, whatever becomes of the draft before.
        riders = torch.where(leg.rides, riders, leg.reached * parts.alpha)
        passes.append(torch.where(leg.rides, 0.0, riders))
        fed.append(riders * (leg.length.drafted / gamma))
        rest_from_s = leg.ready_s + _until_rest_s(parts, leg) - _back_s(parts)
        for weight, end_s in _ends(parts, leg):
            time_s = time_s + weight * end_s
            resting = resting + weight * (end_s > rest_from_s)
    # A drafter that rests has no token under way to finish; that helps unless the row is late.
    is_row_late = legs[0].tested_s > legs[0].leaves_s + 0.5 * parts.rtt_s
    saved_s = _token_under_way_s(parts) * resting * ~is_row_late
    period_s = (legs[-1].pass_to_s - legs[-1 - REPEATED].pass_to_s) / REPEATED
    weights = _Weights.of(parts, legs)
    rejected, beyond = weights.rejected, weights.beyond
    time_s = rejected * (time_s + beyond * legs[-1].pass_to_s - saved_s)
    return _Epoch(
        time_s=(time_s + beyond * period_s * weights.tail).mean(0),
        passes=(rejected + weights.per_verdict(passes)).mean(0),
        new_tokens=(rejected + gamma * weights.per_verdict(fed)).mean(0),
        tokens=weights.per_verdict([leg.reached * leg.length.committed for leg in legs]).mean(0),
    )


def _ends(parts: RoundParts, leg: _Leg) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Tell chance and time of a rejection at a draft's first token, and at a later one."""
    first = leg.reached * (1 - parts.alpha)
    later = leg.reached * (parts.alpha - leg.length.survives)
    return (first, leg.tested_s), (later, leg.pass_to_s)


def _until_rest_s(parts: RoundParts, leg: _Leg) -> Tensor:
    """Compute how long the device drafts behind a draft; the last may grow whole."""
    if parts.draft_budget is None:
        return parts.window * leg.draft_s
    return (parts.window - 1) * leg.draft_s + parts.draft_s


def _back_s(parts: RoundParts) -> Tensor:
    """Compute the time of a verdict from the server to the device."""
    return parts.downlink_s + 0.5 * parts.rtt_s


def _token_under_way_s(parts: RoundParts) -> Tensor:
    """Compute the mean rest of a draft token at an interrupt, which finishes it first."""
    return 0.5 * parts.draft_s / parts.gamma.clamp_min(1)


def _legs(parts: RoundParts, paths: int) -> list[_Leg]:
    """Let drafts leave one after the other, with scattered times."""
    if parts.draft_budget != "verdict":
        return _legs_within(parts, paths, parts.draft_budget)
    # The drafts decide how long verdicts take: once from whole ones, and once from those.
    plain_s = parts.uplink_s + parts.rtt_s + parts.wait_s + parts.verify_s + parts.downlink_s
    return _legs_within(parts, paths, _verdict_s(parts, _legs_within(parts, paths, plain_s)))


def _verdict_s(parts: RoundParts, legs: list[_Leg]) -> Tensor:
    """Compute the mean time from sending a draft to its verdict, of those that take a pass."""
    weights = torch.stack([leg.reached for leg in legs])
    took_s = torch.stack([leg.pass_to_s + _back_s(parts) - leg.ready_s for leg in legs])
    return (weights * took_s).sum(0).mean(0) / weights.sum(0).mean(0)


def _legs_within(parts: RoundParts, paths: int, budget_s: Tensor | float | None) -> list[_Leg]:
    """Let drafts leave one after the other, each cut by a budget of drafting time."""
    axes = max(part.dim() for part in vars(parts).values() if isinstance(part, Tensor))
    scatter = _scatter(paths).to(parts.draft_s).view(paths, -1, *(1,) * axes)
    start = _start(parts, scatter[:, -1])

    def follow(first: _Leg, blocks: int) -> list[_Leg]:
        legs = [first]
        for block in range(blocks):
            last = legs[-1]
            freed = legs[block + 1 - parts.window] if block >= parts.window else None
            length = _length(parts, last, freed, budget_s)
            drafted_s = parts.draft_s
            if budget_s is not None:
                drafted_s = parts.draft_s / parts.gamma.clamp_min(1) * length.drafted
            relative = 1 / length.drafted.sqrt()
            draft_s = drafted_s * (1 + scatter[:, 2 * block] * relative)
            verify_s = parts.verify_s * (1 + scatter[:, 2 * block + 1])
            reached = last.reached * last.length.survives if block else last.reached
            legs.append(_next(last, parts, reached, length, draft_s, verify_s, freed))
        return legs[1:]

    rehearsed = follow(start, 2)
    begin = replace(
        start,
        pass_to_s=start.pass_to_s + _row_wait_s(parts, rehearsed),
        leaves_s=start.leaves_s + _stale_s(parts, rehearsed),
    )
    return follow(begin, BLOCKS)


def _length(
    parts: RoundParts, last: _Leg | None, freed: _Leg | None, budget_s: Tensor | float | None
) -> BlockLength:
    """Find the law of a draft's length: it ends past its budget, once it may go up."""
    alpha, gamma = parts.alpha, parts.gamma.clamp_min(1)
    if budget_s is None or last is None:
        return BlockLength(gamma, geometric_tokens(alpha, gamma - 1), alpha**gamma)
    limit_s = budget_s + torch.zeros_like(last.pass_to_s)
    if freed is not None:
        room_s = freed.pass_to_s + _back_s(parts) - last.ready_s
        limit_s = torch.maximum(limit_s, room_s)
    return cut_at(limit_s, parts.draft_s / gamma, gamma, alpha)


def _uplink_s(parts: RoundParts, length: BlockLength) -> Tensor:
    """Compute the mean time of sending a draft, affine in its tokens."""
    if parts.draft_budget is None or parts.first_uplink_s is None:
        return parts.uplink_s
    per_token_s = (parts.uplink_s - parts.first_uplink_s) / (parts.gamma - 1).clamp_min(1)
    return parts.first_uplink_s + per_token_s * (length.drafted - 1)


def _start(parts: RoundParts, row_scatter: Tensor) -> _Leg:
    """Bring the correction down, and forward it for the row behind it."""
    back_s = _back_s(parts)
    row_s = parts.verify_s * (1 + row_scatter)
    return _Leg(
        reached=torch.ones_like(row_s + parts.alpha),
        length=_length(parts, None, None, None),
        draft_s=parts.draft_s,
        uplink_s=parts.uplink_s,
        ready_s=back_s + _token_under_way_s(parts),
        leaves_s=back_s + torch.zeros_like(row_s),
        tested_s=row_s,
        pass_from_s=torch.full_like(row_s, -1.0),
        pass_to_s=row_s,
        rides=torch.zeros_like(row_s, dtype=torch.bool),
    )


def _row_wait_s(parts: RoundParts, legs: list[_Leg]) -> Tensor:
    """Compute the mean wait of a correction for its pass, by a rehearsal of two drafts.

    Where a pass has rejected, the next one starts at once. A first token is rejected when its draft
    comes, in the midst of a pass of others perhaps.
    """
    first, later = (
        torch.where(leg.rides, 0.0, leg.pass_from_s - leg.tested_s).mean(0) for leg in legs
    )
    survives, later_survives = (leg.length.survives for leg in legs)
    beyond = survives / (1 - later_survives).clamp_min(1e-6)
    waits_s = (1 - parts.alpha) * (first + beyond * later)
    return waits_s if parts.draft_budget is None else waits_s.mean(0)


def _stale_s(parts: RoundParts, legs: list[_Leg]) -> Tensor:
    """Compute for how long a frame of the voided drafts still holds the uplink, by a rehearsal.

    A frame that has begun to leave leaves; one that has not is dropped.
    """
    if parts.window == 1:
        return torch.zeros_like(legs[0].leaves_s)
    stale_s = torch.zeros(())
    for weight, end_s in _ends(parts, legs[0]):
        left_s = legs[1].leaves_s - end_s - _back_s(parts)
        stale_s = stale_s + weight * torch.where(left_s < legs[1].uplink_s, left_s, 0.0).clamp_min(
            0
        )
    return stale_s / (1 - legs[0].length.survives).clamp_min(1e-6)


def _next(
    last: _Leg,
    parts: RoundParts,
    reached: Tensor,
    length: BlockLength,
    draft_s: Tensor,
    verify_s: Tensor,
    freed: _Leg | None,
) -> _Leg:
    """Draft, send and verify the next draft.

    Args:
        last: the draft before.
        parts: wait, uplink and path.
        reached: chance that all before were accepted.
        length: of this draft.
        draft_s: of this draft.
        verify_s: of its pass.
        freed: draft whose verdict makes room in the window.
    """
    ready_s = last.ready_s + draft_s
    if freed is not None:
        ready_s = torch.maximum(ready_s, freed.pass_to_s + _back_s(parts))
    uplink_s = _uplink_s(parts, length)
    leaves_s = torch.maximum(ready_s, last.leaves_s) + uplink_s
    arrives_s = leaves_s + 0.5 * parts.rtt_s
    rides = arrives_s <= last.pass_from_s
    tested_s = torch.maximum(arrives_s, last.pass_to_s)
    # Behind one's own pass the next one of others starts at once, if there is one.
    passes = ((arrives_s - last.pass_to_s) / parts.verify_s).clamp_min(0)
    from_s = tested_s + 2 * parts.wait_s * (passes.ceil() - passes)
    pass_to_s = torch.where(rides, last.pass_to_s, from_s + verify_s)
    return _Leg(
        reached=reached,
        length=length,
        draft_s=draft_s,
        uplink_s=uplink_s,
        ready_s=ready_s,
        leaves_s=leaves_s,
        tested_s=torch.where(rides, pass_to_s, tested_s),
        pass_from_s=torch.where(rides, last.pass_from_s, from_s),
        pass_to_s=pass_to_s,
        rides=rides,
    )
