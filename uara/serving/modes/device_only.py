"""The device decodes alone with its draft model: no server, no radio, the draft's quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.modes.parts import RoundParts


@dataclass(frozen=True)
class DeviceOnly:
    """Rounds of `gamma` >= 1 draft tokens, all committed; lossy against the target model."""

    name: str = "device_only"
    is_lossless: bool = False
    uses_server: bool = False
    drafts: bool = True

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Return the draft itself."""
        return torch.ones_like(alpha) * gamma

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Return the time of drafting."""
        return parts.draft_s

    def think_time_s(self, parts: RoundParts) -> Tensor:
        """Return zero: the server is not used."""
        return torch.zeros_like(parts.draft_s)
