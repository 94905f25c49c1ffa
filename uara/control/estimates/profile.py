"""How much slower or faster servers are than believed, learned from the rounds they gave.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.estimates.experience import Experience, Memory, carried_on
from uara.network import NetworkState, Phase
from uara.prediction import Physics, predict
from uara.serving.batching import sum_by_server

TIMES = ("forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s")
LEAST, MOST = 0.2, 5.0  # bounds of a factor
LARGEST_STEP = 2.0  # of one slot


class ProfileEstimateConfig(BaseModel):
    """How fast a server's factor follows what is observed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: float = Field(0.4, gt=0, le=1, description="share of the observed error taken per slot")


@dataclass(frozen=True)
class _Belief(Memory):
    log_factor: Tensor  # (B, E)


class ProfileEstimate:
    """Scales all forward times of a server by one factor.

    A device that decoded all through a slot of length D made D / T rounds. Of T what does not
    belong to the server (drafting, radio, path) is known; the rest is waiting and the pass itself,
    which both grow with the factor. Its observed over its predicted sum over a server's devices
    corrects the factor, in logarithms and damped.
    """

    def __init__(self, config: ProfileEstimateConfig, physics: Physics) -> None:
        """Take over options; `physics` predicts the rounds."""
        self._config, self._physics = config, physics
        self._belief: _Belief | None = None

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool."""
        none = _Belief(torch.zeros_like(state.forward_fixed_s))
        self._belief = carried_on(self._belief, none, fresh)

    def learn(self, past: Experience) -> None:
        """Compare the rounds of the slot with those predicted."""
        assert self._belief is not None, "begin comes first"
        before, decision, outcome = past.before, past.decision, past.outcome
        rounds = past.rounds(self._physics)
        decodes = (before.phase == int(Phase.DECODING)) & (before.server == decision.server)
        counts = decodes & ~past.ended & (rounds > 0)
        if outcome.held_back is not None:
            counts = counts & ~outcome.held_back
        plan = predict(past.seen, decision, self._physics)
        at_server_s = plan.wait_s + plan.verify_s
        away_s = plan.round_s - at_server_s
        observed_s = past.duration_s[:, None] / rounds.clamp_min(1e-6) - away_s
        weight = counts.to(observed_s.dtype)
        sums = sum_by_server(
            torch.stack((observed_s.clamp_min(0) * weight, at_server_s * weight)),
            decision.server.expand(2, *decision.server.shape),
            before.num_servers,
        )
        ratio = sums[0] / sums[1].clamp_min(1e-9)
        step = ratio.clamp(1 / LARGEST_STEP, LARGEST_STEP).log() * self._config.gain
        moved = self._belief.log_factor + torch.where(sums[1] > 0, step, 0.0)
        self._belief = _Belief(moved.clamp(math.log(LEAST), math.log(MOST)))

    def correct(self, state: NetworkState) -> NetworkState:
        """Scale the forward times."""
        factor = self.factors()
        return state.with_(**{name: getattr(state, name) * factor for name in TIMES})

    def factors(self) -> Tensor:
        """Return the factor of each server, (B, E)."""
        assert self._belief is not None, "begin comes first"
        return self._belief.log_factor.exp()
