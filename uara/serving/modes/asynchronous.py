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
from uara.serving.modes.parts import Effort, RoundParts
from uara.serving.modes.psd import TIME_SPREAD
from uara.serving.modes.sd import geometric_tokens
from uara.serving.payload import Codec

PATHS = 4  # times scatter, so that which pass a draft meets is not decided by a hair's breadth
BLOCKS = 8  # drafts followed one by one; behind them the last four repeat
REPEATED = 4


@dataclass(frozen=True)
class _Epoch:
    """Means per verdict of a run of drafts between two rejections."""

    time_s: Tensor
    passes: Tensor
    new_tokens: Tensor
    draft_s: Tensor
    drafts: Tensor


@cache
def _scatter() -> Tensor:
    """Draw factors around 0 for P paths, (P, 2 * BLOCKS + 1), uniform with `TIME_SPREAD`.

    A Latin square per column: its mean is 0 exactly.
    """
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randperm(PATHS, generator=draw) for _ in range(2 * BLOCKS + 1)]
    centred = (torch.stack(columns, 1) + 0.5) / PATHS * 2 - 1
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
        return geometric_tokens(alpha, gamma - 1)

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
        return _epoch(parts).time_s

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back after what a cycle of passes leaves beside wait and pass, at any phase.

        Less than nothing is left where most passes start at the end of the one before.
        """
        epoch = _epoch(parts)
        think_s = epoch.time_s / epoch.passes - parts.wait_s - parts.verify_s
        share = torch.full_like(think_s, 0.5)
        return Comeback(
            torch.maximum(think_s, -parts.wait_s),
            share,
            epoch.new_tokens / epoch.passes,
            torch.zeros_like(share),
        )

    def effort(self, parts: RoundParts) -> Effort:
        """Count the drafts that a rejection voids as well."""
        epoch = _epoch(parts)
        return Effort(epoch.draft_s, epoch.drafts)


@dataclass
class _Flight:
    """Where the drafts of an epoch are, (P, ...); time 0 is the rejection at the server."""

    ready_s: Tensor  # the last draft was drafted, and the window let it go
    leaves_s: Tensor  # it has left the radio
    pass_from_s: Tensor  # the last pass began
    pass_to_s: Tensor  # and ended


def _epoch(parts: RoundParts) -> _Epoch:
    """Follow the drafts behind a rejection, one by one, with the chance that each is reached."""
    alpha, gamma = parts.alpha, parts.gamma.clamp_min(1)
    survives = alpha**gamma
    rejected = 1 - survives
    shape = torch.broadcast_shapes(*(t.shape for t in vars(parts).values() if torch.is_tensor(t)))
    scatter = _scatter().to(parts.draft_s).view(PATHS, -1, *(1,) * len(shape))
    begun = _begin(parts, gamma, 1 + scatter[:, -1], (PATHS, *shape))
    flight = replace(begun, pass_to_s=begun.pass_to_s + _row_wait_s(parts, begun, scatter))
    # The token under way at the interrupt is finished first, unless the drafter rests by then.
    token_s = 0.5 * parts.draft_s / gamma
    verdicts: list[Tensor] = []
    passes: list[Tensor] = []
    fed: list[Tensor] = []
    time_s = resting = ahead_s = torch.zeros(())
    row_s = flight.pass_to_s
    reached = riders = torch.ones_like(survives)
    for block in range(BLOCKS):
        draft_s = parts.draft_s * (1 + scatter[:, 2 * block] / gamma.sqrt())
        verify_s = parts.verify_s * (1 + scatter[:, 2 * block + 1])
        freed_s = verdicts[block - parts.window] if block >= parts.window else None
        tested_s, rides = _next(flight, parts, draft_s, verify_s, freed_s)
        if block == 0:
            saved_s = token_s * (tested_s > row_s)  # nothing, where the first draft has to wait
        verdicts.append(flight.pass_to_s)
        # Whoever waits when a pass starts goes along, whatever becomes of the one before.
        riders = torch.where(rides, riders, reached * alpha)
        passes.append(torch.where(rides, 0.0, riders))
        fed.append(riders)
        # Rejected at the first token, or later in the pass.
        for chance, end_s in ((1 - alpha, tested_s), (alpha - survives, flight.pass_to_s)):
            weight = reached * chance
            time_s = time_s + weight * end_s
            since_s = end_s + _back_s(parts) - flight.ready_s
            most_s = parts.window * draft_s  # the device makes so many more and then rests
            ahead_s = ahead_s + weight * torch.minimum(since_s, most_s)
            resting = resting + weight * (since_s > most_s)
        reached = reached * survives

    def per_verdict(each: list[Tensor]) -> Tensor:
        """Add what is counted per draft, the last ones standing for all that follow."""
        tail = torch.stack(each[-REPEATED:]).mean(0)
        repeated = torch.stack([survives**n for n in range(BLOCKS - REPEATED, BLOCKS)]).mean(0)
        return rejected * torch.stack(each).sum(0) + tail * (survives**BLOCKS / repeated)

    period_s = (verdicts[-1] - verdicts[-1 - REPEATED]) / REPEATED
    time_s = rejected * (time_s + reached * verdicts[-1] - saved_s * resting) + reached * period_s
    drafts = (ahead_s / parts.draft_s.clamp_min(1e-9) - 0.5).clamp(0, parts.window - 1)
    return _Epoch(
        time_s=time_s.mean(0),
        passes=(rejected + per_verdict(passes)).mean(0),
        new_tokens=(rejected + gamma * per_verdict(fed)).mean(0),
        draft_s=parts.draft_s + (rejected * (ahead_s + token_s * (1 - resting))).mean(0),
        drafts=1 + (rejected * drafts).mean(0),
    )


def _back_s(parts: RoundParts) -> Tensor:
    """Compute the time of a verdict from the server to the device."""
    return parts.downlink_s + 0.5 * parts.rtt_s


def _begin(parts: RoundParts, gamma: Tensor, row_factor: Tensor, shape: tuple[int, ...]) -> _Flight:
    """Bring the correction down, and forward it for the row behind it."""
    back_s = _back_s(parts)
    row_s = parts.verify_s * row_factor
    # A frame of the voided drafts may still hold the uplink.
    stale = (parts.uplink_s / parts.draft_s.clamp_min(1e-9)).clamp(max=1) * (parts.window > 1)
    return _Flight(
        ready_s=(back_s + 0.5 * parts.draft_s / gamma).expand(shape),
        leaves_s=back_s + 0.5 * parts.uplink_s * stale,
        pass_from_s=torch.full_like(row_s, -1.0),
        pass_to_s=row_s,
    )


def _row_wait_s(parts: RoundParts, begun: _Flight, scatter: Tensor) -> Tensor:
    """Compute the mean wait of the correction for a pass, by a rehearsal of two drafts.

    Where a pass has rejected, the next one starts at once. A first token is rejected when its draft
    comes, in the midst of a pass of others perhaps.
    """
    flight = replace(begun)
    survives = parts.alpha ** parts.gamma.clamp_min(1)
    waits_s = []
    for block in range(2):
        draft_s = parts.draft_s * (1 + scatter[:, 2 * block] / parts.gamma.clamp_min(1).sqrt())
        verify_s = parts.verify_s * (1 + scatter[:, 2 * block + 1])
        freed_s = flight.pass_to_s if block and parts.window == 1 else None
        tested_s, rides = _next(flight, parts, draft_s, verify_s, freed_s)
        waits_s.append(torch.where(rides, 0.0, flight.pass_from_s - tested_s).mean(0))
    first, later = waits_s
    chance = (1 - parts.alpha) * survives / (1 - survives).clamp_min(1e-6)
    return (1 - parts.alpha) * first + chance * later


def _next(
    flight: _Flight,
    parts: RoundParts,
    draft_s: Tensor,
    verify_s: Tensor,
    freed_s: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draft, send and verify the next draft.

    Args:
        flight: is carried on to this draft.
        parts: wait, uplink and path.
        draft_s: of this draft.
        verify_s: of its pass.
        freed_s: verdict at the server that makes room in the window.

    Returns:
        when its first token is tested, and whether it rides on the pass of the draft before.
    """
    ready_s = flight.ready_s + draft_s
    if freed_s is not None:
        ready_s = torch.maximum(ready_s, freed_s + _back_s(parts))
    flight.ready_s = ready_s
    flight.leaves_s = torch.maximum(ready_s, flight.leaves_s) + parts.uplink_s
    arrives_s = flight.leaves_s + 0.5 * parts.rtt_s
    rides = arrives_s <= flight.pass_from_s
    tested_s = torch.maximum(arrives_s, flight.pass_to_s)
    # Behind one's own pass the next one of others starts at once, if there is one.
    passes = ((arrives_s - flight.pass_to_s) / parts.verify_s).clamp_min(0)
    from_s = tested_s + 2 * parts.wait_s * (passes.ceil() - passes)
    flight.pass_from_s = torch.where(rides, flight.pass_from_s, from_s)
    flight.pass_to_s = torch.where(rides, flight.pass_to_s, from_s + verify_s)
    return torch.where(rides, flight.pass_to_s, tested_s), rides
