"""A bandit per device that learns which draft length brings the most tokens per second.

Shape legend: B networks, M devices, G lengths (the arms, 0 to the longest).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.network import NetworkState, Phase, SlotOutcome


class UcbConfig(BaseModel):
    """How curious the bandit is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exploration: float = Field(
        0.3, ge=0, description="weight of the confidence bound, in units of the best mean rate"
    )


@dataclass
class _Memory:
    pulls: Tensor  # (B, M, G) whole slots of decoding with each length
    tokens: Tensor  # (B, M, G) committed in them
    seconds: Tensor  # (B, M, G) that they lasted
    arm: Tensor  # (B, M) long, length of the slot under way
    counts: Tensor  # (B, M) bool, the slot under way tells something about its length
    slot_tokens: Tensor  # (B, M) that the slot brought
    slot_start_s: Tensor  # (B,)


class UcbDraftLength:
    """Upper confidence bounds on a ratio: tokens committed over seconds of decoding.

    The index of a length is its mean rate plus c r sqrt(2 ln n / n_g), with n_g of the device's n
    slots, r its best mean rate and exploration c; lengths not yet tried go first, from 0 on. Ratios
    of sums, not means of ratios, are what a long run earns (the reward of UCB-SpecStop, arXiv
    2606.20591). A slot counts where a device decoded from its start to its end.
    """

    def __init__(self, longest: int, config: UcbConfig) -> None:
        self._arms = longest + 1
        self._config = config
        self._memory: _Memory | None = None

    def reset(self, mask: Tensor) -> None:
        """Forget what the networks in `mask` (B,) bool have taught."""
        memory = self._memory
        if memory is None or len(memory.pulls) != len(mask):
            self._memory = None
            return
        for learned in (memory.pulls, memory.tokens, memory.seconds):
            learned[mask] = 0
        memory.counts[mask] = False

    def choose(self, state: NetworkState) -> Tensor:
        """Close the slot that is over and choose the lengths of the next, (B, M) long."""
        memory = self._remember(state)
        index = self._index(memory)
        memory.arm = index.argmax(-1)
        memory.counts = state.phase == int(Phase.DECODING)
        memory.slot_tokens = torch.zeros_like(state.gain[..., 0])
        memory.slot_start_s = state.time_s.clone()
        return memory.arm

    def observe(self, outcome: SlotOutcome) -> None:
        """Take down what the slot brought; a finished request leaves an unknown part of it idle."""
        memory = self._memory
        if memory is None:
            return
        memory.slot_tokens = outcome.tokens
        memory.counts = memory.counts & ~outcome.finished
        for spoilt in (outcome.held_back, outcome.handover):
            if spoilt is not None:
                memory.counts = memory.counts & ~spoilt

    def _remember(self, state: NetworkState) -> _Memory:
        """Add the slot that is over to the sums, or begin with an empty memory."""
        memory, shape = self._memory, (*state.phase.shape, self._arms)
        if memory is None or memory.pulls.shape != shape:
            empty = torch.zeros(shape, dtype=torch.float64)
            self._memory = memory = _Memory(
                pulls=empty,
                tokens=empty.clone(),
                seconds=empty.clone(),
                arm=state.phase,
                counts=torch.zeros_like(state.has_request),
                slot_tokens=state.age_s,
                slot_start_s=state.time_s,
            )
            return memory
        slot_s = (state.time_s - memory.slot_start_s).double()[:, None].expand(shape[:2])
        counts = memory.counts & (slot_s > 0)
        amounts = (torch.ones_like(slot_s), memory.slot_tokens.double(), slot_s)
        sums = (memory.pulls, memory.tokens, memory.seconds)
        for total, amount in zip(sums, amounts, strict=True):
            total.scatter_add_(-1, memory.arm[..., None], (amount * counts)[..., None])
        return memory

    def _index(self, memory: _Memory) -> Tensor:
        """Compute the upper confidence bounds, (B, M, G); infinite for lengths not tried."""
        tried = memory.pulls > 0
        rate = torch.where(tried, memory.tokens / memory.seconds.clamp_min(1e-9), 0.0)
        slots = memory.pulls.sum(-1, keepdim=True).clamp_min(1)
        doubt = (2 * slots.log() / memory.pulls.clamp_min(1)).sqrt()
        bound = rate + self._config.exploration * rate.amax(-1, keepdim=True) * doubt
        return torch.where(tried, bound, torch.inf)
