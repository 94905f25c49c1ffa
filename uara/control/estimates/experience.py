"""What a controller has seen of a slot once it is over, and what every estimator does with it.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics
from uara.serving.modes import MODE_INDEX

Kept = TypeVar("Kept", bound="Memory")


@dataclass(frozen=True)
class Experience:
    """A slot that is over: the state before it, the decision, what came of it, the state after."""

    before: NetworkState
    seen: NetworkState  # the state before it as the estimators had corrected it
    decision: Decision
    outcome: SlotOutcome
    after: NetworkState
    lasts: Tensor  # (B,) bool, the network was not reset since

    @property
    def duration_s(self) -> Tensor:
        """Length of the slot, (B,) seconds; 0 where the network was reset."""
        return torch.where(self.lasts, self.after.time_s - self.before.time_s, 0.0)

    @property
    def ended(self) -> Tensor:
        """Tell whose request ended, answered or not, (B, M) bool."""
        failed = self.outcome.failed
        return self.outcome.finished if failed is None else self.outcome.finished | (failed > 0)

    def rounds(self, physics: Physics) -> Tensor:
        """Count the rounds of sequential decoding from what was sent, (B, M); 0 where unknown.

        While nothing but drafts is sent, rounds are bits sent over bits of a draft; without drafts
        every token is a round of its own. Modes that overlap send drafts that nobody verifies, and
        are left out.
        """
        gamma = self.decision.draft_length.to(self.before.gain.dtype)
        mode = self.decision.mode
        if mode is None:
            is_known = torch.full_like(gamma, physics.config.mode in ("sd", "server_ar")).bool()
            is_plain = (gamma <= 0) | (physics.config.mode == "server_ar")
        else:
            is_plain = (gamma <= 0) | (mode == MODE_INDEX["server_ar"])
            is_known = is_plain | (mode == MODE_INDEX["sd"])
        draft_bits = physics.codec.draft_bits(gamma.clamp_min(1))
        rounds = torch.where(is_plain, self.outcome.tokens, self.outcome.uplink_bits / draft_bits)
        is_sent = self.before.has_request & (self.before.upload_bits <= 0)
        return torch.where(is_known & is_sent & self.lasts[:, None], rounds, 0.0)


class Estimator(Protocol):
    """Learns from slots that are over and corrects what is known at the start of the next."""

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool; `state` tells the sizes."""

    def learn(self, past: Experience) -> None:
        """Learn from the slot that is over."""

    def correct(self, state: NetworkState) -> NetworkState:
        """Return the state as it is believed to be."""
        ...


@dataclass(frozen=True)
class Memory:
    """Tensors (B, ...) that an estimator keeps; all zero at the start."""

    def sized_as(self, other: Self) -> bool:
        """Tell whether both belong to networks of the same sizes."""
        return all(
            getattr(self, f.name).shape == getattr(other, f.name).shape for f in fields(self)
        )

    def cleared(self, fresh: Tensor) -> Self:
        """Return a copy whose rows in `fresh` (B,) bool are zero."""

        def clear(values: Tensor) -> Tensor:
            rows = fresh.view(-1, *[1] * (values.dim() - 1))
            return torch.where(rows, torch.zeros_like(values), values)

        return replace(self, **{f.name: clear(getattr(self, f.name)) for f in fields(self)})


def carried_on(memory: Kept | None, empty: Kept, fresh: Tensor) -> Kept:
    """Carry a memory on, without the networks in `fresh` (B,); begin anew where sizes differ."""
    if memory is None or not memory.sized_as(empty):
        return empty
    return memory.cleared(fresh)
