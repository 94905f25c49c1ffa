"""What a decision becomes in a real run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.decoding.state_view import to_plan
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics
from uara.serving.modes import MODE_INDEX


def decided(state: NetworkState, mode: str) -> Decision:
    like = torch.zeros_like(state.server)
    return Decision(
        server=like,
        bandwidth_hz=torch.full_like(state.age_s, 1e5),
        power_w=state.power_max_w,
        draft_length=torch.full_like(like, 3),
        mode=torch.full_like(like, MODE_INDEX[mode]),
    )


@pytest.mark.parametrize("mode", ["sd", "device_only", "psd", "async"])
def test_a_decided_mode_reaches_the_plan(
    make_state: Callable[..., NetworkState], physics: Physics, mode: str
) -> None:
    state = make_state(1, 2, 1, phase=Phase.DECODING)
    plan = to_plan(state, decided(state, mode), physics)
    assert plan.mode is not None
    assert plan.mode.tolist() == [MODE_INDEX[mode]] * 2


@pytest.mark.parametrize(("mode", "length"), [("sd", 3), ("server_ar", 0)])
def test_plain_decoding_drafts_nothing(
    make_state: Callable[..., NetworkState], physics: Physics, mode: str, length: int
) -> None:
    state = make_state(1, 2, 1, phase=Phase.DECODING)
    assert to_plan(state, decided(state, mode), physics).draft_length.tolist() == [length, length]
