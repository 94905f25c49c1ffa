"""For each device the lossless mode that the formulas hold for fastest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes.asynchronous import AsynchronousSpeculation
from uara.serving.modes.parts import Effort, RoundParts, ServingMode, one_draft
from uara.serving.modes.psd import ParallelSpeculation
from uara.serving.modes.sd import SequentialSpeculation
from uara.serving.modes.server_ar import ServerAutoregressive
from uara.serving.payload import Codec

CANDIDATES: tuple[ServingMode, ...] = (
    SequentialSpeculation(),
    ServerAutoregressive(),
    ParallelSpeculation(),
    AsynchronousSpeculation(),
)


@dataclass(frozen=True)
class BestOfLossless:
    """A choice and no protocol: `uara.prediction` serves each device by the mode it names.

    Where only the parts of a round are known, a round of `auto` is one token of the best mode for
    these parts.
    """

    name: str = "auto"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = True
    overlaps: bool = True

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return one token."""
        return torch.ones_like(alpha)

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Take those of the draft length; no budget of time cuts a draft here."""
        return self.expected_tokens(parts.alpha, parts.gamma)

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Take those of a sequential round's tokens."""
        return SequentialSpeculation().accepted_tokens(tokens, alpha)

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Count what a sequential round gives to a pass."""
        return SequentialSpeculation().new_tokens(alpha, gamma)

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Compute the bits of a sequential draft."""
        return codec.draft_bits(gamma)

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean bits of a sequential verdict."""
        return codec.verdict_bits(gamma, alpha)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Compute the least time per token."""
        tpot_s = [m.round_time_s(parts) / m.round_tokens(parts) for m in CANDIDATES]
        return reduce(torch.minimum, tpot_s)

    def comeback(self, parts: RoundParts) -> Comeback:
        """Come back as a sequential round does."""
        return SequentialSpeculation().comeback(parts)

    def effort(self, parts: RoundParts) -> Effort:
        """Draft and send once."""
        return one_draft(parts)
