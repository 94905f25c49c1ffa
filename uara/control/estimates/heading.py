"""Gains where devices will be, from their headings and from what was heard near there before.

Shape legend: B networks, M devices, E servers, H places remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.estimates.experience import Experience, Memory, carried_on
from uara.network import NetworkState


class HeadingConfig(BaseModel):
    """How far ahead a device is followed, and how wide a remembered place is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ahead_s: float = Field(3.0, ge=0, description="how far to look ahead")
    place_m: float = Field(20.0, gt=0, description="width of the kernel around a remembered place")
    places: int = Field(256, gt=0, description="places remembered per network, the last ones")
    doubt_places: float = Field(
        4.0, gt=0, description="remembered places near by at which the map is half believed"
    )
    largest_change_db: float = Field(10.0, gt=0, description="bound of the change looked ahead")


@dataclass(frozen=True)
class _Places(Memory):
    position_m: Tensor  # (B, M, 2) a slot ago
    velocity_m_s: Tensor  # (B, M, 2)
    time_s: Tensor  # (B,) of that slot
    is_running: Tensor  # (B,) bool, there was one
    place_m: Tensor  # (B, H, 2)
    gain_db: Tensor  # (B, H, E)
    is_filled: Tensor  # (B, H)

    @classmethod
    def of(cls, state: NetworkState, places: int) -> _Places:
        """Make an empty memory."""
        num, _, servers = state.gain.shape
        new = state.gain.new_zeros
        none = torch.zeros_like(state.position_m)
        return cls(
            position_m=none,
            velocity_m_s=none,
            time_s=torch.zeros_like(state.time_s),
            is_running=torch.zeros_like(state.time_s, dtype=torch.bool),
            place_m=new(num, places, 2),
            gain_db=new(num, places, servers),
            is_filled=new(num, places),
        )


class Heading:
    """Shifts each gain by the change of the map from where a device is to where it is heading.

    The map is a kernel mean (Nadaraya-Watson) of the gains in dB that any device of the network had
    at remembered places; its change is used and not its level, since each device has shadows of its
    own. Where nobody has been yet, nothing is shifted.
    """

    def __init__(self, config: HeadingConfig) -> None:
        """Take over options."""
        self._config = config
        self._places: _Places | None = None
        self._next = 0  # place to be overwritten

    def begin(self, state: NetworkState, fresh: Tensor) -> None:
        """Forget the networks in `fresh` (B,) bool, take headings and remember places."""
        devices = state.num_devices
        places = max(self._config.places, devices)
        old = carried_on(self._places, _Places.of(state, places), fresh)
        passed_s = (state.time_s - old.time_s)[:, None, None].clamp_min(1e-9)
        velocity = (state.position_m - old.position_m) / passed_s
        at = (self._next + torch.arange(devices)) % places
        self._next = (self._next + devices) % places
        self._places = replace(
            old,
            position_m=state.position_m,
            velocity_m_s=torch.where(old.is_running[:, None, None], velocity, 0.0),
            time_s=state.time_s,
            is_running=torch.ones_like(fresh),
            place_m=old.place_m.index_copy(1, at, state.position_m),
            gain_db=old.gain_db.index_copy(1, at, 10 * state.gain.log10()),
            is_filled=old.is_filled.index_fill(1, at, 1.0),
        )

    def learn(self, past: Experience) -> None:
        """Gains are taken in where they come; what a slot brought says nothing of them."""

    def correct(self, state: NetworkState) -> NetworkState:
        """Shift the gains."""
        places = self._places
        assert places is not None, "begin comes first"
        here_db, weight_here = self._map(places, state.position_m)
        ahead_m = state.position_m + places.velocity_m_s * self._config.ahead_s
        there_db, weight_there = self._map(places, ahead_m)
        weight = torch.minimum(weight_here, weight_there)
        trust = weight / (self._config.doubt_places + weight)
        bound = self._config.largest_change_db
        change_db = (trust * (there_db - here_db)).clamp(-bound, bound)
        return state.with_(gain=state.gain * 10 ** (change_db / 10))

    def _map(self, places: _Places, position_m: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mean gain in dB (B, M, E) and the kernel's weight (B, M, 1) at places."""
        square_m2 = torch.cdist(position_m, places.place_m).square()
        kernel = torch.exp(-0.5 * square_m2 / self._config.place_m**2)
        kernel = kernel * places.is_filled[:, None]
        weight = kernel.sum(-1, keepdim=True)
        return kernel @ places.gain_db / weight.clamp_min(1e-9), weight
