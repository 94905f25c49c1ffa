"""Acceptance is learned from drafts sent and tokens that came back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from uara.control.estimates.acceptance import (
    AcceptanceEstimate,
    AcceptanceEstimateConfig,
    rate_of_tokens,
)
from uara.control.estimates.experience import Experience
from uara.network import NetworkState, Phase
from uara.prediction import Physics

MakeState = Callable[..., NetworkState]
MakePast = Callable[..., Experience]
NOBODY = torch.zeros(1, dtype=torch.bool)


@pytest.fixture
def decoding(make_state: MakeState) -> NetworkState:
    """Two devices that decode; both tasks are believed to have 0.7."""
    return make_state(
        1, 2, 2, phase=Phase.DECODING, upload_bits=0, acceptance=0.7, server=0, task=[[0, 1]]
    )


def slot(
    make_past: MakePast, physics: Physics, state: NetworkState, rates: list[float], **more: object
) -> Experience:
    """Play ten rounds of four drafts each at true rates."""
    tokens = [10 * sum(rate**k for k in range(5)) for rate in rates]
    bits = 10 * physics.codec.draft_bits(4.0)
    return make_past(
        state,
        gamma=4,
        tokens=torch.tensor([tokens]),
        uplink_bits=torch.tensor([[bits] * 2]),
        **more,
    )


def test_rate_is_that_whose_geometric_sum_are_the_tokens() -> None:
    # 1 + 0.5 + 0.25 + 0.125 + 0.0625 tokens with four drafts.
    rate = rate_of_tokens(torch.tensor([1.9375, 1.0, 5.0]), torch.tensor([4.0, 4.0, 4.0]))
    torch.testing.assert_close(rate, torch.tensor([0.5, 0.0, 1.0]), atol=1e-4, rtol=0)


def test_own_rate_is_found_while_the_request_decodes(
    make_past: MakePast, physics: Physics, decoding: NetworkState
) -> None:
    estimate = AcceptanceEstimate(AcceptanceEstimateConfig(), physics)
    for _ in range(8):
        estimate.begin(decoding, NOBODY)
        seen = estimate.correct(decoding)
        estimate.learn(slot(make_past, physics, decoding, [0.4, 0.9]))
    assert seen.acceptance.tolist()[0] == pytest.approx([0.4, 0.9], abs=0.05)


def test_next_requests_start_from_what_their_task_and_device_have_shown(
    make_past: MakePast, physics: Physics, decoding: NetworkState
) -> None:
    estimate = AcceptanceEstimate(AcceptanceEstimateConfig(), physics)
    ended = torch.ones(1, 2, dtype=torch.bool)
    for _ in range(10):
        estimate.begin(decoding, NOBODY)
        past = slot(make_past, physics, decoding, [0.4, 0.9])
        estimate.learn(replace(past, outcome=replace(past.outcome, finished=ended)))
    estimate.begin(decoding, NOBODY)
    low, high = estimate.correct(decoding).acceptance[0].tolist()
    assert low < 0.5
    assert high > 0.8
    # The other's task pulls one way, the own device the other.
    swapped = decoding.with_(task=torch.tensor([[1, 0]]))
    mixed = estimate.correct(swapped).acceptance[0].tolist()
    assert all(low < rate < high for rate in mixed)


def test_drift_common_to_all_is_followed_and_forgotten_networks_trust_the_prior(
    make_past: MakePast, physics: Physics, decoding: NetworkState
) -> None:
    estimate = AcceptanceEstimate(AcceptanceEstimateConfig(), physics)
    other = decoding.with_(task=torch.tensor([[2, 3]]))
    ended = torch.ones(1, 2, dtype=torch.bool)
    for _ in range(10):
        estimate.begin(decoding, NOBODY)
        past = slot(make_past, physics, decoding, [0.5, 0.5])
        estimate.learn(replace(past, outcome=replace(past.outcome, finished=ended)))
    estimate.begin(other, NOBODY)
    assert (estimate.correct(other).acceptance < 0.6).all()
    estimate.begin(other, ~NOBODY)
    assert estimate.correct(other).acceptance.tolist()[0] == pytest.approx([0.7, 0.7])


def test_slots_with_an_upload_say_nothing(
    make_past: MakePast, physics: Physics, decoding: NetworkState
) -> None:
    estimate = AcceptanceEstimate(AcceptanceEstimateConfig(), physics)
    sending = decoding.with_(upload_bits=torch.full((1, 2), 1e5))
    estimate.begin(sending, NOBODY)
    estimate.learn(slot(make_past, physics, sending, [0.1, 0.1]))
    assert estimate.correct(sending).acceptance.tolist()[0] == pytest.approx([0.7, 0.7])
