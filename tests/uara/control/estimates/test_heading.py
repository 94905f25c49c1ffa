"""Gains are looked up where devices are heading."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uara.control.estimates.heading import Heading, HeadingConfig
from uara.network import NetworkState

SITES_M = torch.tensor([[0.0, 0.0], [300.0, 0.0]])
NOBODY = torch.zeros(1, dtype=torch.bool)


def gain_at(position_m: Tensor) -> Tensor:
    """Lose 40 dB per decade of distance to two sites, 10 m below the antennas."""
    distance = (torch.cdist(position_m, SITES_M.expand(len(position_m), -1, -1)) ** 2 + 100).sqrt()
    return 10 ** (-(30 + 40 * distance.log10()) / 10)


def walk(make_state: Callable[..., NetworkState], heading: Heading, slots: int) -> NetworkState:
    """Let ten devices follow each other from one site towards the other, 5 m per slot."""
    state = make_state(1, 10, 2)
    start = torch.linspace(0, 150, 10)
    for slot in range(slots):
        x = start + 5 * slot
        position = torch.stack((x, torch.full_like(x, 5.0)), -1)[None]
        state = state.with_(
            position_m=position, gain=gain_at(position), time_s=torch.tensor([0.5 * slot])
        )
        heading.begin(state, NOBODY)
    return state


def test_those_who_follow_know_what_comes(make_state: Callable[..., NetworkState]) -> None:
    heading = Heading(HeadingConfig(ahead_s=3.0))
    state = walk(make_state, heading, slots=24)
    followers = slice(0, 7)
    ahead = state.position_m + torch.tensor([30.0, 0.0])
    truth_db = 10 * gain_at(ahead).log10()[:, followers]
    error_db = (10 * heading.correct(state).gain.log10()[:, followers] - truth_db).abs().mean()
    blind_db = (10 * state.gain.log10()[:, followers] - truth_db).abs().mean()
    assert error_db < 0.5 * blind_db


def test_devices_that_stand_keep_their_gains(make_state: Callable[..., NetworkState]) -> None:
    heading = Heading(HeadingConfig())
    state = walk(make_state, heading, slots=24)
    state = state.with_(time_s=state.time_s + 0.5)
    heading.begin(state, NOBODY)
    torch.testing.assert_close(heading.correct(state).gain, state.gain)


def test_where_nobody_has_been_nothing_is_shifted(
    make_state: Callable[..., NetworkState],
) -> None:
    heading = Heading(HeadingConfig(place_m=5.0, ahead_s=60.0))
    state = walk(make_state, heading, slots=10)
    torch.testing.assert_close(heading.correct(state).gain, state.gain, rtol=1e-4, atol=0)
