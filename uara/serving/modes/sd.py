"""Sequential speculative decoding: draft, send, verify, answer, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.batching import Comeback, residual_share
from uara.serving.modes.parts import Effort, RoundParts, one_draft
from uara.serving.payload import Codec


def geometric_tokens(alpha: Tensor, gamma: Tensor) -> Tensor:
    """Compute (1 - alpha^(gamma+1)) / (1 - alpha), which is gamma + 1 at alpha = 1.

    The mean number of tokens of a round with acceptance `alpha` per position and the correction or
    bonus token (arXiv 2211.17192 eq. 1).
    """
    rest = (1 - alpha).clamp_min(1e-6)
    return torch.where(alpha > 1 - 1e-5, gamma + 1.0, (1 - alpha ** (gamma + 1)) / rest)


@dataclass(frozen=True)
class SequentialSpeculation:
    """The device drafts `gamma` tokens and waits for the server's verdict."""

    name: str = "sd"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = True
    overlaps: bool = False

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute accepted draft tokens plus the correction or bonus token."""
        return geometric_tokens(alpha, gamma)

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take those of the draft length; no budget of time cuts a draft here."""
        return self.expected_tokens(parts.alpha, parts.gamma)

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Take all but the correction or bonus token."""
        return tokens - 1

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Count the last committed token and the draft."""
        return gamma + 1

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Compute the bits of the draft's frame."""
        return codec.draft_bits(gamma)

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean bits of a verdict."""
        return codec.verdict_bits(gamma, alpha)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Sum all parts: nothing overlaps."""
        return _away_s(parts) + parts.wait_s + parts.verify_s

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back after all that happens between two passes: verdict down, draft, draft up."""
        think_s = _away_s(parts)
        share = residual_share(think_s, parts.verify_s)
        new_tokens = self.new_tokens(parts.alpha, parts.gamma)
        return Comeback(think_s, share, new_tokens, torch.zeros_like(share))

    def effort(self, parts: RoundParts) -> Effort:
        """Draft and send once."""
        return one_draft(parts)


def _away_s(parts: RoundParts) -> Tensor:
    return parts.draft_s + parts.uplink_s + parts.downlink_s + parts.rtt_s
