"""What a serving mode is: tokens, time and load of one round, given the times of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.payload import Codec


@dataclass(frozen=True)
class RoundParts:
    """What one round is made of; all of shapes that broadcast."""

    draft_s: Tensor  # drafting `draft_length` tokens on the device
    uplink_s: Tensor  # sending the draft
    wait_s: Tensor  # waiting for the forward pass in progress
    verify_s: Tensor  # the batched forward pass that carries this request
    downlink_s: Tensor  # sending the verdict
    rtt_s: Tensor  # path beyond the radio, both ways
    alpha: Tensor  # accepted / tested draft tokens
    gamma: Tensor  # draft length
    window: int = 1  # drafts that may be in flight unverified (`async`)
    draft_budget: float | Literal["verdict"] | None = None  # drafting time of a draft (`async`)
    first_uplink_s: Tensor | None = None  # sending a draft of one token; where there is a budget


@dataclass(frozen=True)
class Effort:
    """What a round costs the device, thrown-away work included."""

    draft_s: Tensor  # seconds of drafting
    drafts: Tensor  # drafts sent


class ServingMode(Protocol):
    """A way of serving a request; a new one is a file here and an entry in `MODES`."""

    @property
    def name(self) -> str:
        """Key of the mode."""
        ...

    @property
    def is_lossless(self) -> bool:
        """Tell whether the answer follows the target model's law."""
        ...

    @property
    def uses_server(self) -> bool:
        """Tell whether rounds pass through the server."""
        ...

    @property
    def drafts(self) -> bool:
        """Tell whether the device drafts."""
        ...

    @property
    def overlaps(self) -> bool:
        """Tell whether the device works while the server does, so that its think time varies."""
        ...

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean number of tokens committed in a round."""
        ...

    def round_tokens(self, parts: RoundParts) -> Tensor:
        """Compute the mean number of tokens committed in a round of these parts."""
        ...

    def accepted_tokens(self, tokens: Tensor, alpha: Tensor) -> Tensor:
        """Compute how many of a round's mean `tokens` were drafts that the target tested."""
        ...

    def new_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean number of new tokens that a forward pass is given."""
        ...

    def draft_bits(self, codec: Codec, gamma: Tensor) -> Tensor:
        """Compute the bits of one draft, all its frames together."""
        ...

    def verdict_bits(self, codec: Codec, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean bits that go down in a round."""
        ...

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Compute the time from the start of a round to the start of the next."""
        ...

    def comeback(self, parts: RoundParts) -> Comeback:
        """Compute how a request comes back to its server from one pass to the next."""
        ...

    def effort(self, parts: RoundParts) -> Effort:
        """Compute what a round costs the device."""
        ...


def one_draft(parts: RoundParts) -> Effort:
    """Draft and send once in a round."""
    return Effort(parts.draft_s, torch.ones_like(parts.draft_s))
