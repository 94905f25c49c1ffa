"""Sequential speculative decoding: draft, send, verify, answer, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.modes.parts import RoundParts


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

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute accepted draft tokens plus the correction or bonus token."""
        return geometric_tokens(alpha, gamma)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Sum all parts: nothing overlaps."""
        return self.think_time_s(parts) + parts.wait_s + parts.verify_s

    def think_time_s(self, parts: RoundParts) -> Tensor:
        """Sum what happens between two forward passes: verdict down, draft, draft up."""
        return parts.draft_s + parts.uplink_s + parts.downlink_s + parts.rtt_s
