"""The server decodes alone and streams its tokens; the reference that speculation has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.modes.parts import RoundParts


@dataclass(frozen=True)
class ServerAutoregressive:
    """One token per forward pass; the request sits in every batch, its tokens stream down."""

    name: str = "server_ar"
    is_lossless: bool = True
    uses_server: bool = True
    drafts: bool = False

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return one token per round."""
        return torch.ones_like(alpha)

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Return the forward pass: streaming overlaps with the next one."""
        return parts.verify_s

    def think_time_s(self, parts: RoundParts) -> Tensor:
        """Return zero: the next input is at the server already."""
        return torch.zeros_like(parts.verify_s)
