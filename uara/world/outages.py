"""Server outages: when a server is out, and what is announced of it.

Shape legend: B networks, E servers, K outages of a server in an episode.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.world.streams import Purpose, uniform


class OutageConfig(BaseModel):
    """How often servers go out, for how long, and how early it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_s: float = Field(
        60.0, gt=0, description="mean time from the end of an outage to the next, exponential"
    )
    duration_s: float = Field(10.0, gt=0, description="mean length of an outage, exponential")
    notice_s: float = Field(
        5.0, ge=0, description="how long before its start an outage is announced"
    )

    def num_outages(self, horizon_s: float) -> int:
        """Bound the outages of a server: six standard deviations above the fastest mean."""
        mean = horizon_s / self.every_s
        return math.ceil(mean + 6 * math.sqrt(mean)) + 2


def draw_outages(
    episode: Tensor, num_servers: int, horizon_s: float, config: OutageConfig
) -> tuple[Tensor, Tensor]:
    """Draw the outages of episodes; the same episode key always gives the same ones.

    Args:
        episode: (B,) int64 keys.
        num_servers: E.
        horizon_s: outages are drawn up to it.
        config: means.

    Returns:
        starts and ends, (B, E, K) float64 seconds, rising along K.
    """
    number = torch.arange(config.num_outages(horizon_s))
    keys = (episode[:, None, None], torch.arange(num_servers)[:, None], number)
    gap_s = -torch.log(uniform(*keys, int(Purpose.OUTAGE_GAP))) * config.every_s
    length_s = -torch.log(uniform(*keys, int(Purpose.OUTAGE_LENGTH))) * config.duration_s
    end_s = (gap_s + length_s).cumsum(-1)
    return end_s - length_s, end_s


def outages_at(
    time_s: Tensor, start_s: Tensor, end_s: Tensor, slot_s: float, notice_s: float
) -> tuple[Tensor, Tensor]:
    """Find which servers are out in the slot that begins now, and what is announced.

    A server is out in every slot that its outage touches.

    Args:
        time_s: (B,) start of the slot.
        start_s: (B, E, K).
        end_s: (B, E, K).
        slot_s: length of a slot.
        notice_s: outages that begin later than that are not known yet.

    Returns:
        is_down (B, E) bool, and seconds to the next announced outage (B, E): 0 while the server is
        out, infinity while none is announced.
    """
    now = time_s[:, None, None]
    is_down = ((start_s < now + slot_s) & (end_s > now)).any(-1)
    to_next = torch.where(start_s >= now + slot_s, start_s - now, math.inf).amin(-1)
    announced = torch.where(to_next <= notice_s, to_next, math.inf)
    return is_down, torch.where(is_down, 0.0, announced).float()


def reachable_in_outage(reachable: Tensor, is_down: Tensor) -> Tensor:
    """Take servers that are out from those in reach, (B, M, E); where none is left, keep all."""
    up = reachable & ~is_down[:, None, :]
    return torch.where(up.any(-1, keepdim=True), up, reachable)
