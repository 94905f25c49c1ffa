"""Batteries of devices: their charge at the start of an episode, and what a slot takes from them.

Shape legend: B networks, M devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from uara.world.streams import Purpose, uniform


class BatteryConfig(BaseModel):
    """How full batteries are, and what drains them beside drafting and transmitting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    charge_min: float = Field(0.6, gt=0, le=1, description="lowest charge at the start (share)")
    charge_max: float = Field(1.0, gt=0, le=1, description="highest charge at the start (share)")
    idle_power_w: float = Field(0.0, ge=0, description="drawn all the time, e.g. by the screen")
    failure_s: float = Field(
        60.0,
        ge=0,
        description="a request that fails counts as if it had waited that much longer, so that a "
        "controller does not gain by letting devices die",
    )

    @model_validator(mode="after")
    def _check_order(self) -> BatteryConfig:
        if self.charge_min > self.charge_max:
            raise ValueError(
                f"charge_min is {self.charge_min} but charge_max is {self.charge_max}; "
                "lower the one or raise the other"
            )
        return self


def draw_battery_j(episode: Tensor, capacity_j: Tensor, config: BatteryConfig) -> Tensor:
    """Draw the charge at the start of episodes, uniform between its bounds, (B, M) joules.

    Args:
        episode: (B,) int64 keys.
        capacity_j: (B, M) of full batteries.
        config: bounds.
    """
    device = torch.arange(capacity_j.shape[1])
    draw = uniform(episode[:, None], device, int(Purpose.BATTERY))
    charge = config.charge_min + (config.charge_max - config.charge_min) * draw
    return (capacity_j * charge).float()


@dataclass(frozen=True)
class Drain:
    """What a slot takes from the batteries, (B, M)."""

    spent_j: Tensor  # at most what was left
    done_share: Tensor  # of the slot's work that the battery carried
    dies: Tensor  # bool, the battery is empty after the slot
    share_of_left: Tensor  # joules spent over joules left at the slot's start


def drain(battery_j: Tensor, work_j: Tensor, idle_j: float) -> Drain:
    """Take a slot's joules from the batteries.

    Where a battery holds less than the slot asks for, the device does the same share of all its
    work and dies.

    Args:
        battery_j: (B, M) at the start of the slot.
        work_j: (B, M) that drafting and transmitting ask for.
        idle_j: drawn besides by a device that is not dead.
    """
    alive = battery_j > 0
    need_j = torch.where(alive, work_j + idle_j, 0.0)
    spent_j = torch.minimum(need_j, battery_j)
    done_share = torch.where(need_j > 0, spent_j / need_j.clamp_min(1e-30), 1.0)
    return Drain(
        spent_j=spent_j,
        done_share=done_share,
        dies=alive & (need_j >= battery_j),
        share_of_left=torch.where(alive, spent_j / battery_j.clamp_min(1e-30), 0.0),
    )
