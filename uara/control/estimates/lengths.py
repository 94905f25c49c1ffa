"""How much longer or shorter answers are than their law says, learned from those that ended.

Shape legend: B networks, M devices, K task types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.estimates.acceptance import NUM_TASKS
from uara.control.estimates.experience import Experience, Memory, carried_on
from uara.network import NetworkState

LEAST_TOKENS = 1.0  # of an answer that goes on


class LengthEstimateConfig(BaseModel):
    """How much is believed in the law of lengths, and how fast what was seen is forgotten."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior_answers: float = Field(
        4.0, gt=0, description="weight in answers of the law being right, for network and task each"
    )
    forget_s: float = Field(60.0, gt=0, description="time constant of forgetting")


def hazard_spent(tokens: Tensor, left_before: Tensor, left_after: Tensor) -> Tensor:
    """Compute the integral of the hazard over tokens of an answer that went on.

    The mean residual life e(t) determines the hazard h(t) = (1 + e'(t)) / e(t). Where e is linear
    between both ends, its integral is (n + e_1 - e_0) / L(e_0, e_1), L the logarithmic mean.

    Args:
        tokens: (B, M) n.
        left_before: (B, M) e_0 > 0.
        left_after: (B, M) e_1 > 0.
    """
    difference, ratio = left_after - left_before, left_after / left_before
    is_flat = (ratio - 1).abs() < 1e-4
    safe = torch.where(is_flat, 2.0, ratio)
    log_mean = torch.where(is_flat, left_before, left_before * (safe - 1) / safe.log())
    return ((tokens + difference) / log_mean).clamp_min(0)


@dataclass(frozen=True)
class _Counts(Memory):
    spent: Tensor  # (B, K) hazard
    ended: Tensor  # (B, K) answers


class LengthEstimate:
    """Scales the mean of what is left by one factor per network and one per task.

    Under a law whose random part is c times longer, the hazard is 1 / c of the believed one, so the
    answers that end are a Poisson count of mean (hazard spent) / c. With a gamma prior of weight w,
    c = (w + hazard spent) / (w + answers ended). Answers that are still going on count with what
    they have spent, so that long ones are not missed.
    """

    def __init__(self, config: LengthEstimateConfig) -> None:
        """Take over options."""
        self._config = config
        self._counts: _Counts | None = None

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool."""
        none = state.gain.new_zeros(state.num_networks, NUM_TASKS)
        self._counts = carried_on(self._counts, _Counts(none, none), fresh)

    def learn(self, past: Experience) -> None:
        """Count the hazard spent and the answers that ended in the slot."""
        assert self._counts is not None, "begin comes first"
        before, tokens = past.before, past.outcome.tokens
        left = before.expected_remaining_tokens.clamp_min(LEAST_TOKENS)
        later = past.after.expected_remaining_tokens.clamp_min(LEAST_TOKENS)
        finished = past.outcome.finished
        # Of an answer that ended nothing is known after; its slot is short beside what was left.
        spent = torch.where(finished, tokens / left, hazard_spent(tokens, left, later))
        counts = before.has_request & past.lasts[:, None] & (finished | ~past.ended)
        fade = torch.exp(-past.duration_s / self._config.forget_s)[:, None]
        task = before.task.clamp(max=NUM_TASKS - 1)
        self._counts = _Counts(
            (self._counts.spent * fade).scatter_add(1, task, spent * counts),
            (self._counts.ended * fade).scatter_add(1, task, (finished & counts).to(spent.dtype)),
        )

    def correct(self, state: NetworkState) -> NetworkState:
        """Scale the mean of what is left."""
        task = state.task.clamp(max=NUM_TASKS - 1)
        left = state.expected_remaining_tokens * self.factors().gather(1, task)
        return state.with_(expected_remaining_tokens=left.clamp_min(LEAST_TOKENS))

    def factors(self) -> Tensor:
        """Compute the factor of each task, (B, K)."""
        assert self._counts is not None, "begin comes first"
        weight, spent, ended = self._config.prior_answers, self._counts.spent, self._counts.ended
        network = (weight + spent.sum(1, keepdim=True)) / (weight + ended.sum(1, keepdim=True))
        return network * (weight + spent / network) / (weight + ended)
