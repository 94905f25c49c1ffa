"""The acceptance of drafts, learned from what was sent and what came back.

Shape legend: B networks, M devices, K task types.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.estimates.experience import Experience, Memory, carried_on
from uara.network import NetworkState
from uara.prediction import Physics
from uara.serving.modes.sd import geometric_tokens

HALVINGS = 24  # of the unit interval
LOWEST, HIGHEST = 0.02, 0.98  # bounds of a believed rate
NUM_TASKS = 32  # task types that are told apart; further ones share the last


class AcceptanceEstimateConfig(BaseModel):
    """How much is believed in the task's rate, and how fast it is forgotten."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior_tokens: float = Field(
        20.0, gt=0, description="weight in tested tokens of the task's rate beside a request's own"
    )
    level_tokens: float = Field(
        60.0,
        gt=0,
        description="weight in tested tokens of no deviation, for network, task and device each",
    )
    forget_s: float = Field(
        60.0, gt=0, description="time constant of forgetting how network, task and device deviate"
    )
    window_tokens: float = Field(
        200.0, gt=0, description="tested tokens over which a request's own past is forgotten"
    )


def rate_of_tokens(tokens_per_round: Tensor, gamma: Tensor) -> Tensor:
    """Invert the mean tokens of a round of speculation to the rate of acceptance.

    Args:
        tokens_per_round: 1 to gamma + 1, any shape.
        gamma: draft length, same shape.
    """
    low, high = torch.zeros_like(tokens_per_round), torch.ones_like(tokens_per_round)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        is_small = geometric_tokens(middle, gamma) < tokens_per_round
        low, high = torch.where(is_small, middle, low), torch.where(is_small, high, middle)
    return 0.5 * (low + high)


@dataclass(frozen=True)
class _Counts(Memory):
    """What was seen; pairs are (excess or accepted, tested)."""

    mean: Tensor  # (B, M) of the current request's task when it began
    is_known: Tensor  # (B, M) bool, that mean was seen
    own: Tensor  # (B, 2, M) of the current request
    network: Tensor  # (B, 2, 1)
    task: Tensor  # (B, 2, K)
    device: Tensor  # (B, 2, M)

    @classmethod
    def of(cls, state: NetworkState) -> _Counts:
        """Make an empty memory."""
        num, devices = state.acceptance.shape
        new = state.acceptance.new_zeros
        return cls(
            mean=new(num, devices),
            is_known=torch.zeros_like(state.has_request),
            own=new(num, 2, devices),
            network=new(num, 2, 1),
            task=new(num, 2, NUM_TASKS),
            device=new(num, 2, devices),
        )


class AcceptanceEstimate:
    """Beta estimates of requests around a mean that network, task and device shift.

    A request's rate has the mean a = a_task + d_network + d_task + d_device; a_task is what was
    known of the task when the request began, and each d is the excess of accepted tokens over what
    the levels before it explain, divided by the tokens tested and a prior weight. The request's
    estimate is the mean of a Beta law with (w a + accepted, w (1 - a) + rejected).
    """

    def __init__(self, config: AcceptanceEstimateConfig, physics: Physics) -> None:
        """Take over options; `physics` tells the bits of a draft."""
        self._config, self._physics = config, physics
        self._counts: _Counts | None = None

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool and note the means of requests that begin."""
        counts = carried_on(self._counts, _Counts.of(state), fresh)
        mean = torch.where(counts.is_known, counts.mean, state.acceptance)
        self._counts = replace(counts, mean=mean, is_known=state.has_request)

    def learn(self, past: Experience) -> None:
        """Count what the slot's drafts brought."""
        counts = self._counts
        assert counts is not None, "begin comes first"
        accepted, tested = self._observed(past)
        fade = torch.exp(-past.duration_s / self._config.forget_s)[:, None, None]
        index = past.before.task.clamp(max=NUM_TASKS - 1)
        # Each level explains what the one before it has left over.
        excess = accepted - tested * counts.mean
        network = counts.network * fade
        network = network + torch.stack((excess, tested), 1).sum(-1, keepdim=True)
        excess = excess - tested * self._shift(network)
        pair = torch.stack((excess, tested), 1)
        task = (counts.task * fade).scatter_add(2, index[:, None].expand(-1, 2, -1), pair)
        excess = excess - tested * self._shift(task).gather(1, index)
        device = counts.device * fade + torch.stack((excess, tested), 1)
        window = torch.exp(-tested / self._config.window_tokens)[:, None]
        own = counts.own * window + torch.stack((accepted, tested), 1)
        self._counts = _Counts(
            mean=counts.mean,
            is_known=counts.is_known & ~past.ended,
            own=torch.where(past.ended[:, None], 0.0, own),
            network=network,
            task=task,
            device=device,
        )

    def _observed(self, past: Experience) -> tuple[Tensor, Tensor]:
        """Find the tokens accepted and tested in the slot, (B, M) each; 0 where unknown."""
        gamma = past.decision.draft_length.to(past.before.gain.dtype)
        is_plain = self._physics.config.mode == "server_ar" and past.decision.mode is None
        rounds = past.rounds(self._physics) * (gamma > 0) * (not is_plain)
        per_round = past.outcome.tokens / rounds.clamp_min(1e-6)
        rate = rate_of_tokens(per_round.clamp_min(1).minimum(gamma + 1), gamma)
        # A round tests one token after the other until one is rejected.
        tested = rounds * geometric_tokens(rate, (gamma - 1).clamp_min(0))
        return rate * tested, tested

    def correct(self, state: NetworkState) -> NetworkState:
        """Replace the acceptance by the estimate."""
        counts = self._counts
        assert counts is not None, "begin comes first"
        index = state.task.clamp(max=NUM_TASKS - 1)
        shift = self._shift(counts.network) + self._shift(counts.task).gather(1, index)
        mean = (counts.mean + shift + self._shift(counts.device)).clamp(LOWEST, HIGHEST)
        weight = self._config.prior_tokens
        estimate = (weight * mean + counts.own[:, 0]) / (weight + counts.own[:, 1])
        return state.with_(acceptance=torch.where(state.has_request, estimate, state.acceptance))

    def _shift(self, level: Tensor) -> Tensor:
        """Compute a level's deviation from excess and tested, (B, 2, ...) to (B, ...)."""
        return level[:, 0] / (self._config.level_tokens + level[:, 1])
