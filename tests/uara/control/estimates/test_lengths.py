"""Answers that are longer or shorter than their law says are noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uara.control.estimates.experience import Experience
from uara.control.estimates.lengths import LengthEstimate, LengthEstimateConfig, hazard_spent
from uara.network import NetworkState, Phase

MakeState = Callable[..., NetworkState]
MakePast = Callable[..., Experience]


def test_hazard_of_an_exponential_length_is_tokens_over_the_mean() -> None:
    left = torch.tensor([[64.0]])
    assert hazard_spent(torch.tensor([[16.0]]), left, left).item() == pytest.approx(0.25)


def test_hazard_of_a_uniform_length_is_the_logarithm_of_what_is_left() -> None:
    # Uniform on 0..100 at 20 tokens: 40 are left in the mean; survival falls from 0.8 to 0.5.
    spent = hazard_spent(torch.tensor([[30.0]]), torch.tensor([[40.0]]), torch.tensor([[25.0]]))
    assert spent.item() == pytest.approx(torch.tensor(0.8 / 0.5).log().item(), rel=1e-5)


def test_tokens_before_the_shortest_answer_spend_no_hazard() -> None:
    spent = hazard_spent(torch.tensor([[30.0]]), torch.tensor([[96.0]]), torch.tensor([[66.0]]))
    assert spent.item() == pytest.approx(0, abs=1e-6)


def simulate(
    make_state: MakeState, make_past: MakePast, truth: float, slots: int, forget_s: float
) -> tuple[LengthEstimate, NetworkState]:
    """Let 40 devices answer without end; the law says a mean of 64 tokens, the truth is `truth`."""
    estimate = LengthEstimate(LengthEstimateConfig(forget_s=forget_s))
    state = make_state(1, 40, 2, phase=Phase.DECODING, expected_remaining_tokens=64, server=0)
    draw = torch.Generator().manual_seed(1)

    def lengths() -> Tensor:
        return -torch.rand(1, 40, generator=draw).log() * truth

    left = lengths()
    for _ in range(slots):
        estimate.begin(state, torch.zeros(1, dtype=torch.bool))
        tokens = left.clamp(max=8)
        finished = left <= 8
        past = make_past(state, tokens=tokens, finished=finished)
        estimate.learn(replace(past, after=past.after.with_(time_s=state.time_s + 0.5)))
        left = torch.where(finished, lengths(), left - 8)
    return estimate, state


@pytest.mark.parametrize("truth", [32.0, 64.0, 128.0])
def test_factor_between_truth_and_law_is_found(
    make_state: MakeState, make_past: MakePast, truth: float
) -> None:
    estimate, state = simulate(make_state, make_past, truth, slots=120, forget_s=1e6)
    assert estimate.factors()[0, 0].item() == pytest.approx(truth / 64, rel=0.1)
    left = estimate.correct(state).expected_remaining_tokens
    assert left.mean().item() == pytest.approx(truth, rel=0.1)


def test_law_is_believed_as_much_as_its_weight_in_answers(
    make_state: MakeState, make_past: MakePast
) -> None:
    state = make_state(1, 40, 2, phase=Phase.DECODING, expected_remaining_tokens=64, task=0)
    estimate = LengthEstimate(LengthEstimateConfig())
    estimate.begin(state, torch.zeros(1, dtype=torch.bool))
    assert (estimate.factors() == 1).all()
    # Three means of 64 tokens without an end: (w + 3) / w, first by network, then by task.
    past = make_past(state, tokens=torch.full((1, 40), 64.0) * (torch.arange(40) < 3))
    estimate.learn(past)
    network = (4 + 3) / 4
    assert estimate.factors()[0, 0].item() == pytest.approx(
        network * (4 + 3 / network) / 4, rel=1e-5
    )
