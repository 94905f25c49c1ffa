"""Splits the reward of a network among its devices.

Shape legend: B networks, M devices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def device_reward(reward: Tensor, load: Tensor, sharing: float) -> Tensor:
    """Mix a device's own part of the network's reward with that of the others, (B, M).

    Args:
        reward: (B,) of the network.
        load: (B, M) requests waiting or alive at each device; the parts go by it.
        sharing: 1 gives everybody the network's reward, 0 its own part only.
    """
    total = load.sum(1, keepdim=True)
    part = torch.where(total > 0, load / total.clamp_min(1e-9), 1 / load.shape[1])
    own = reward.unsqueeze(1) * part
    return own + sharing * (reward.unsqueeze(1) - own)
