"""The device decodes alone with its draft model: no server, no radio, the draft's quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes.parts import Effort, RoundParts, one_draft
from uara.serving.payload import Codec


@dataclass(frozen=True)
class DeviceOnly:
    """Rounds of `gamma` >= 1 draft tokens, all committed; lossy against the target model."""

    name: str = "device_only"
    is_lossless: bool = False
    uses_server: bool = False
    drafts: bool = True
    overlaps: bool = False

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return the draft itself."""
        return torch.ones_like(alpha) * gamma

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take those of the draft length; no budget of time cuts a draft here."""
        return self.expected_tokens(parts.alpha, parts.gamma)

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Return zero: nothing is tested."""
        return torch.zeros_like(tokens)

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Count what the server would be given if it were asked."""
        return gamma + 1

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Return zero: nothing goes up."""
        return torch.zeros_like(gamma)

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return zero: nothing comes down."""
        return torch.zeros_like(gamma)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Return the time of drafting."""
        return parts.draft_s

    def comeback(self, parts: RoundParts) -> Comeback:
        """Return zeros: the server is not used."""
        nothing = torch.zeros_like(parts.draft_s)
        return Comeback(nothing, nothing, nothing, nothing)

    def effort(self, parts: RoundParts) -> Effort:
        """Draft once."""
        return one_draft(parts)
