"""A contextual bandit on the same policy: each choice is judged by itself.

Shape legend: T slots, B networks, M devices, E servers, K value columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from agents.mappo import MappoLearner
from agents.on_policy import BanditConfig
from agents.rollout import Rollout
from envs.batched import BatchedEnv, Step
from envs.observation import Observation, View, schema
from uara.control.objective import total_remaining_s
from uara.network import NetworkState

_AGE = [feature.name for feature in schema().device].index("age_s")
_REMAINING = [feature.name for feature in schema().pair].index("remaining_s")
_SERVING = [feature.name for feature in schema().pair].index("is_serving")
_NORMALISER_S = 20.0  # seconds that a reward of 1 stands for


class BanditLearner(MappoLearner):
    """The clipped policy of MAPPO without a future: discount 0, a reward that already holds it."""

    def __init__(
        self,
        config: BanditConfig,
        env: BatchedEnv,
        view: View,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make networks, optimisers and generators of their own, as MAPPO does."""
        super().__init__(config, env, view, seed, device)
        self.reward = config.reward

    def _slot_reward(self, state: NetworkState, step: Step) -> Tensor:
        """Predict how long all requests will still take, (B, 1), or leave it to `_credited`."""
        if self.reward == "realised":
            return torch.zeros(state.has_request.shape)
        remaining_s = total_remaining_s(state, step.decision, self.env.world.physics)
        return -remaining_s.unsqueeze(1) / (_NORMALISER_S * state.num_devices)

    def _credited(self, rollout: Rollout, steps: list[Step]) -> Rollout:
        """Give each slot the seconds that its request went on to take, (T, B, M)."""
        if self.reward == "predicted":
            return rollout
        device = rollout.reward.device
        finished = torch.stack([step.outcome.finished for step in steps]).to(device)
        e2e_s = torch.stack([step.outcome.e2e_s for step in steps]).to(device)
        remaining_s = realised_remaining_s(
            age_s=20 * rollout.observation.device[..., _AGE],
            finished=finished,
            e2e_s=e2e_s.to(torch.float32),
            ended=torch.stack([step.terminated | step.truncated for step in steps]).to(device),
            expected_s=torch.stack([expected_e2e_s(step.final_observation) for step in steps]).to(
                device
            ),
        )
        active = rollout.observation.active
        return replace(rollout, reward=-remaining_s * active / _NORMALISER_S)


def expected_e2e_s(observation: Observation) -> Tensor:
    """Reckon age plus predicted remaining time of each request from what is observed, (B, M)."""
    pair = observation.pair
    remaining_s = torch.expm1(3 * pair[..., _REMAINING])
    serving = pair[..., _SERVING] > 0.5
    allowed = torch.where(serving.any(-1, keepdim=True), serving, observation.mask)
    least = torch.where(allowed, remaining_s, torch.inf).amin(-1)
    return 20 * observation.device[..., _AGE] + least


def realised_remaining_s(
    *, age_s: Tensor, finished: Tensor, e2e_s: Tensor, ended: Tensor, expected_s: Tensor
) -> Tensor:
    """Look up when the request that each slot had was answered in the end, (T, B, M).

    Args:
        age_s: (T, B, M) of the request at the slot's start.
        finished: (T, B, M) bool, it was answered in this slot.
        e2e_s: (T, B, M) its end-to-end latency where it was.
        ended: (T, B) bool, the episode was cut or ended with this slot.
        expected_s: (T, B, M) end-to-end latency to expect at the slot's end; counts where the
            episode or the rollout ends first.
    """
    total = expected_s[-1]
    remaining = torch.zeros_like(age_s)
    for slot in range(len(age_s) - 1, -1, -1):
        total = torch.where(ended[slot].unsqueeze(1), expected_s[slot], total)
        total = torch.where(finished[slot], e2e_s[slot], total)
        remaining[slot] = (total - age_s[slot]).clamp_min(0)
    return remaining
