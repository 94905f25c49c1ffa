"""The server decodes alone and streams its tokens; the reference that speculation has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes.parts import Effort, RoundParts
from uara.serving.payload import Codec


@dataclass(frozen=True)
class ServerAutoregressive:
    """One token per forward pass; the request sits in every batch, its tokens stream down."""

    name: str = "server_ar"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = False
    overlaps: bool = False

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return one token per round."""
        return torch.ones_like(alpha)

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take those of the draft length; no budget of time cuts a draft here."""
        return self.expected_tokens(parts.alpha, parts.gamma)

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Return zero: nothing is drafted."""
        return torch.zeros_like(tokens)

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Count the last committed token."""
        return torch.ones_like(gamma)

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Return zero: nothing goes up."""
        return torch.zeros_like(gamma)

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return the bits of one streamed token."""
        return torch.full_like(gamma, codec.token_bits())

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Return the forward pass: streaming overlaps with the next one."""
        return parts.verify_s

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back at once: the next input is at the server already."""
        nothing = torch.zeros_like(parts.verify_s)
        return Comeback(nothing, nothing, torch.ones_like(nothing), nothing)

    def effort(self, parts: RoundParts) -> Effort:
        """Return nothing: the device only listens."""
        nothing = torch.zeros_like(parts.draft_s)
        return Effort(nothing, nothing)
