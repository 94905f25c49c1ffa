"""Running mean and variance of value targets, so that the critic predicts on a unit scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueNorm(nn.Module):
    """Debiased exponential average of the first two moments of the targets.

    Updated once per rollout, before the epochs, so that one update sees one scale. The variance has
    a floor relative to the square of the mean: rewards in any unit are normalised alike.
    """

    mean: Tensor
    mean_square: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.95, relative_floor: float = 1e-6) -> None:
        """Start empty; until the first update values pass unchanged."""
        super().__init__()
        self.decay = decay
        self.relative_floor = relative_floor
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_square", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, target: Tensor) -> None:
        """Take in the value targets of a rollout, any shape."""
        target = target.double()
        self.mean.mul_(self.decay).add_((1 - self.decay) * target.mean())
        self.mean_square.mul_(self.decay).add_((1 - self.decay) * target.square().mean())
        self.weight.mul_(self.decay).add_(1 - self.decay)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the targets, scalars."""
        weight = self.weight.clamp_min(1e-12)
        is_empty = self.weight <= 0
        mean = self.mean / weight
        square = self.mean_square / weight
        floor = self.relative_floor * square
        std = (square - mean.square()).maximum(floor).clamp_min(1e-30).sqrt()
        return torch.where(is_empty, 0.0, mean), torch.where(is_empty, 1.0, std)

    def normalise(self, value: Tensor) -> Tensor:
        """Bring values from the real scale to the critic's."""
        mean, std = self.moments()
        return (value - mean.to(value.dtype)) / std.to(value.dtype)

    def denormalise(self, value: Tensor) -> Tensor:
        """Bring values from the critic's scale to the real one."""
        mean, std = self.moments()
        return value * std.to(value.dtype) + mean.to(value.dtype)
