"""Generalised advantage estimation on the real scale of rewards.

Shape legend: T slots, B networks, K value columns (1 for the network, or one per device).
"""

from __future__ import annotations

import torch
from torch import Tensor


def next_values(
    value: Tensor, last_value: Tensor, final_value: Tensor, truncated: Tensor
) -> Tensor:
    """Find the value that follows each slot.

    Args:
        value: (T, B, K) of the observation that each slot started with.
        last_value: (B, K) of the observation after the last slot.
        final_value: (T, B, K) of the true last observation of networks that were truncated; read
            only there, since what follows in `value` is already the next episode.
        truncated: (T, B) bool.

    Returns:
        (T, B, K).
    """
    following = torch.cat((value[1:], last_value.unsqueeze(0)))
    return torch.where(truncated.unsqueeze(-1), final_value, following)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    trace: float,
) -> Tensor:
    """Compute advantages (Schulman et al., arXiv 1506.02438 eq. 16).

    A truncated episode bootstraps with the value of its true last observation, a terminated one
    with nothing; neither lets later deltas through.

    Args:
        reward: (T, B, K).
        value: (T, B, K), real scale.
        next_value: (T, B, K), see `next_values`.
        terminated: (T, B) bool.
        truncated: (T, B) bool.
        discount: gamma of the return.
        trace: lambda of the exponential average.

    Returns:
        (T, B, K).
    """
    goes_on = (~(terminated | truncated)).to(reward.dtype).unsqueeze(-1)
    bootstraps = (~terminated).to(reward.dtype).unsqueeze(-1)
    delta = reward + discount * bootstraps * next_value - value
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for slot in range(len(delta) - 1, -1, -1):
        running = delta[slot] + discount * trace * goes_on[slot] * running
        advantage[slot] = running
    return advantage
