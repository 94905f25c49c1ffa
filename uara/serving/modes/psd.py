"""Parallel speculative decoding: drafting and verifying at the same time, with a barrier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes.parts import Effort, RoundParts, one_draft
from uara.serving.modes.sd import geometric_tokens
from uara.serving.payload import Codec

# Standard deviation over mean of the time of a draft token and of a pass: uniform within 20 %.
TIME_SPREAD = 0.2 / math.sqrt(3)
FOLLOWED_PASSES = 3  # behind them the phase is anybody's guess


def mean_of_later_s(first_s: Tensor, second_s: Tensor, variance_s2: Tensor) -> Tensor:
    """Compute the mean of the later of two instants that scatter (C. E. Clark, 1961).

    Args:
        first_s: mean of the one.
        second_s: mean of the other.
        variance_s2: of their difference; normal.
    """
    spread = variance_s2.clamp_min(1e-12).sqrt()
    distance = (first_s - second_s) / spread
    share: Tensor = torch.special.ndtr(distance)
    bump = torch.exp(-0.5 * distance * distance) * (spread / math.sqrt(2 * math.pi))
    return first_s * share + second_s * (1 - share) + bump


def residual_share_of_steady(think: Tensor, scatter: Tensor) -> Tensor:
    """Compute which share of a pass is waited for by whoever comes back like clockwork.

    On a server that never rests, passes begin where one's own has ended: a think time of z passes
    is followed by a wait of ceil(z) - z, whose jumps are smoothed by the scatter of the think time
    and of the passes gone by.

    Args:
        think: mean think time z, in passes.
        scatter: its standard deviation, in passes.
    """
    ceiling = torch.ones_like(think)
    for gone in range(1, FOLLOWED_PASSES + 1):
        spread = (scatter * scatter + gone * TIME_SPREAD**2).sqrt()
        ceiling = ceiling + torch.special.ndtr((think - gone) / spread)
    return torch.where(think < FOLLOWED_PASSES, ceiling - think, 0.5)


@dataclass(frozen=True)
class ParallelSpeculation:
    """Steps of both ends with a barrier at the device, after PEARL (arXiv 2408.11850).

    The device drafts and sends a block while the server verifies the one before (post), or, at the
    start and after a rejection, judges the first token of the block under way (pre). A block's
    first token goes up ahead of the rest.
    """

    name: str = "psd"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = True
    overlaps: bool = True

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute 1 / ((1 - a) + a / n), n = (1 - a^g) / (1 - a) the tokens of a post window.

        Between two rejections lie 1 / (1 - a) tokens and 1 + a / (1 - a^g) steps.
        """
        return 1 / ((1 - alpha) + alpha / geometric_tokens(alpha, gamma.clamp_min(1) - 1))

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take those of the draft length; no budget of time cuts a draft here."""
        return self.expected_tokens(parts.alpha, parts.gamma)

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Take all but the corrections: each token was tested, there is no bonus."""
        return tokens * alpha

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Average one token before a block is accepted and `gamma` behind it."""
        post = alpha / (1 - alpha**gamma + alpha).clamp_min(1e-6)
        return 1 + post * (gamma - 1)

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Add the frame of the first token and the frame of the rest."""
        rest = torch.where(gamma > 1, codec.draft_bits((gamma - 1).clamp_min(1)), 0.0)
        return codec.draft_bits(torch.ones_like(gamma)) + rest

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Weigh a verdict by the rejections of a step."""
        rejections = (1 - alpha) * self.expected_tokens(alpha, gamma)
        accepted = codec.verdict_bits_given(rejected=False)
        return accepted + (codec.verdict_bits_given(rejected=True) - accepted) * rejections

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Take the later of draft and uplink, and of wait, pass, downlink and path."""
        gamma = parts.gamma.clamp_min(1)
        # The frame of the first token leaves while the others are drafted.
        first_s = (parts.draft_s + parts.uplink_s) / gamma
        own_s = torch.maximum(parts.draft_s, first_s) + parts.uplink_s * (1 - 1 / gamma)
        wait_s, verify_s = parts.wait_s, parts.verify_s
        # The pass has to wait for the first token that it judges.
        served_s = torch.maximum(wait_s + verify_s, first_s) + parts.downlink_s + parts.rtt_s
        # A wait is none, or anything up to a pass.
        wait_s2 = (wait_s * (verify_s * (2 / 3) - wait_s)).clamp_min(0)
        draft_s2 = parts.draft_s * parts.draft_s / gamma
        variance_s2 = TIME_SPREAD**2 * (draft_s2 + verify_s * verify_s) + wait_s2
        return mean_of_later_s(own_s, served_s, variance_s2)

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back after what a step leaves beside wait and pass; path and downlink at least."""
        away_s = self.round_time_s(parts) - parts.wait_s - parts.verify_s
        think_s = torch.maximum(away_s, parts.downlink_s + parts.rtt_s)
        # Where drafting is what takes long, its scatter is that of the return.
        own = (think_s - parts.downlink_s - parts.rtt_s) / think_s.clamp_min(1e-9)
        scatter = own * TIME_SPREAD * parts.draft_s / parts.gamma.clamp_min(1).sqrt()
        think, scatter = think_s / parts.verify_s, scatter / parts.verify_s
        return Comeback(
            think_s,
            residual_share_of_steady(think, scatter),
            self.new_tokens(parts.alpha, parts.gamma),
            locked=torch.special.ndtr((1 - think) / (scatter + TIME_SPREAD)),
        )

    def effort(self, parts: RoundParts) -> Effort:
        """Draft and send once a step."""
        return one_draft(parts)
