"""What a serving mode is: tokens and time of one round, given the times of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class RoundParts:
    """Seconds of the parts of one round; all of one shape."""

    draft_s: Tensor  # drafting `draft_length` tokens on the device
    uplink_s: Tensor  # sending the draft
    wait_s: Tensor  # waiting for the forward pass in progress
    verify_s: Tensor  # the batched forward pass that carries this request
    downlink_s: Tensor  # sending the verdict
    rtt_s: Tensor  # path beyond the radio, both ways


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

    def expected_tokens(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Compute the mean number of tokens committed in a round."""
        ...

    def round_time_s(self, parts: RoundParts) -> Tensor:
        """Compute the time from the start of a round to the start of the next."""
        ...

    def think_time_s(self, parts: RoundParts) -> Tensor:
        """Compute the time from the end of a forward pass to the next one's input."""
        ...
