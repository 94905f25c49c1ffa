"""When requests arrive: a Poisson process, or bursts of it.

Shape legend: B networks, M devices, R requests of a device in an episode, K changes of state.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.world.streams import Purpose, uniform


class BurstConfig(BaseModel):
    """A Markov-modulated Poisson process of two states, busy and quiet, with the same mean rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_ratio: float = Field(8.0, ge=1, description="arrival rate when busy over that when quiet")
    busy_s: float = Field(10.0, gt=0, description="mean length of a busy period")
    quiet_s: float = Field(30.0, gt=0, description="mean length of a quiet period")
    shared: bool = Field(
        True, description="all devices of a network are busy at the same time, else each by itself"
    )

    @property
    def busy_share(self) -> float:
        """Share of time that is busy."""
        return self.busy_s / (self.busy_s + self.quiet_s)

    @property
    def relative_rates(self) -> tuple[float, float]:
        """Rates when busy and when quiet over the mean rate."""
        quiet = 1 / (1 + self.busy_share * (self.rate_ratio - 1))
        return self.rate_ratio * quiet, quiet

    def num_changes(self, horizon_s: float) -> int:
        """Bound the changes of state: six standard deviations above the fastest mean."""
        mean = horizon_s / min(self.busy_s, self.quiet_s)
        return math.ceil(mean + 6 * math.sqrt(mean)) + 2


def to_bursty_times(
    even_s: Tensor, episode: Tensor, horizon_s: float, config: BurstConfig
) -> Tensor:
    """Move the instants of a process of the mean rate to those of the bursty one.

    A process of rate r(t) has run through u = integral of r / mean by the time t at which the even
    process has run through u: so t is the inverse of that integral, which is linear in pieces.

    Args:
        even_s: (B, M, R) arrivals of the even process, rising.
        episode: (B,) int64 keys.
        horizon_s: changes of state are drawn up to it.
        config: rates and periods.

    Returns:
        (B, M, R) float64; beyond the horizon, where no state was drawn, infinity.
    """
    devices = even_s.shape[1]
    device = torch.zeros(1, dtype=torch.int64) if config.shared else torch.arange(devices)
    keys = (episode[:, None, None], device[:, None])
    changes = torch.arange(config.num_changes(horizon_s))
    draw = uniform(*keys, changes, int(Purpose.BURST))
    first = uniform(*keys, torch.tensor([-1]), int(Purpose.BURST))
    is_busy = (first < config.busy_share) ^ (changes % 2 == 1)
    length_s = -torch.log(draw) * torch.where(is_busy, config.busy_s, config.quiet_s)
    busy_rate, quiet_rate = config.relative_rates
    rate = torch.where(is_busy, busy_rate, quiet_rate).double()
    end_s = length_s.cumsum(-1)
    end_even = (length_s * rate).cumsum(-1)
    shape = (*even_s.shape[:2], len(changes))
    end_s, end_even, rate = (t.expand(shape).contiguous() for t in (end_s, end_even, rate))
    piece = torch.searchsorted(end_even, even_s.contiguous()).clamp(max=len(changes) - 1)
    left_even = end_even.gather(2, piece) - even_s
    time_s = end_s.gather(2, piece) - left_even / rate.gather(2, piece)
    return torch.where(left_even >= 0, time_s, math.inf)
