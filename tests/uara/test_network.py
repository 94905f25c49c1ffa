"""The record of what is known: its sizes, and that copies leave it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from uara.network import NetworkState, Phase


def test_sizes_are_those_of_the_gains(make_state: Callable[..., NetworkState]) -> None:
    state = make_state(2, 5, 3)
    assert (state.num_networks, state.num_devices, state.num_servers) == (2, 5, 3)


def test_only_idle_devices_have_no_request(make_state: Callable[..., NetworkState]) -> None:
    state = make_state(
        1, 4, phase=[[Phase.IDLE, Phase.UPLOADING, Phase.PREFILLING, Phase.DECODING]]
    )
    assert state.has_request.tolist() == [[False, True, True, True]]


def test_context_is_prompt_and_answer_so_far(make_state: Callable[..., NetworkState]) -> None:
    state = make_state(1, 2, prompt_tokens=[[100, 7]], tokens_so_far=[[0, 3]])
    assert state.context_tokens.tolist() == [[100, 10]]


def test_selection_takes_networks_in_order_and_with_repetition(
    make_state: Callable[..., NetworkState],
) -> None:
    state = make_state(3, 2, 2)
    chosen = state.select(torch.tensor([2, 0, 2]))
    for field in fields(NetworkState):
        old, new = getattr(state, field.name), getattr(chosen, field.name)
        if old is None:
            assert new is None, field.name
            continue
        assert torch.equal(new, torch.stack((old[2], old[0], old[2]))), field.name


def test_changed_copy_leaves_the_original_alone(make_state: Callable[..., NetworkState]) -> None:
    state = make_state(1, 2)
    changed = state.with_(age_s=torch.full((1, 2), 99.0))
    assert changed.age_s.tolist() == [[99.0, 99.0]]
    assert not (state.age_s == 99).any()
    assert changed.gain is state.gain
    with pytest.raises(FrozenInstanceError):
        state.age_s = changed.age_s  # type: ignore[misc]
