"""Gains that are old by now, carried on by their trend.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.estimates.experience import Experience, Memory, carried_on
from uara.network import NetworkState


class GainTrendConfig(BaseModel):
    """An alpha-beta filter of the gains in dB, and how far ahead it looks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level_gain: float = Field(
        1.0,
        gt=0,
        le=1,
        description="alpha: share of a new gain taken; 1 where gains come filtered already",
    )
    slope_gain: float = Field(0.1, gt=0, le=1, description="beta: share of a new slope taken")
    ahead_s: float = Field(1.0, ge=0, description="age of the gains, or how far to look ahead")
    largest_change_db: float = Field(6.0, gt=0, description="bound of the change looked ahead")


@dataclass(frozen=True)
class _Track(Memory):
    level_db: Tensor  # (B, M, E)
    slope_db_s: Tensor  # (B, M, E)
    time_s: Tensor  # (B,) of the last gain
    is_running: Tensor  # (B,) bool, there was one


class GainTrend:
    """Follows level and slope of each gain in dB and carries the level on.

    The alpha-beta filter: x- = x + v D, r = z - x-, x = x- + alpha r, v = v + beta r / D. It
    follows a ramp without error.
    """

    def __init__(self, config: GainTrendConfig) -> None:
        """Take over options."""
        self._config = config
        self._track: _Track | None = None

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool and take the new gains in."""
        level_db, time_s = 10 * state.gain.log10(), state.time_s
        none = torch.zeros_like(level_db)
        empty = _Track(none, none, torch.zeros_like(time_s), torch.zeros_like(fresh))
        old = carried_on(self._track, empty, fresh)
        runs = old.is_running[:, None, None]
        passed_s = (time_s - old.time_s)[:, None, None].clamp_min(1e-9)
        ahead_db = old.level_db + old.slope_db_s * passed_s
        wrong_db = level_db - ahead_db
        slope = old.slope_db_s + self._config.slope_gain * wrong_db / passed_s
        filtered_db = ahead_db + self._config.level_gain * wrong_db
        self._track = _Track(
            torch.where(runs, filtered_db, level_db),
            torch.where(runs, slope, 0.0),
            time_s,
            torch.ones_like(fresh),
        )

    def learn(self, past: Experience) -> None:
        """Gains are taken in where they come; what a slot brought says nothing of them."""

    def correct(self, state: NetworkState) -> NetworkState:
        """Carry the gains on."""
        assert self._track is not None, "begin comes first"
        bound = self._config.largest_change_db
        change_db = (self._track.slope_db_s * self._config.ahead_s).clamp(-bound, bound)
        return state.with_(gain=10 ** ((self._track.level_db + change_db) / 10))
