"""The laws of actions."""

from __future__ import annotations

import math

import pytest
import torch

from agents.heads import Beta, Categorical


def test_a_masked_choice_is_never_drawn_and_gets_no_gradient() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [30.0, 0.0, 1.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    law = Categorical.of(logits, mask)
    assert torch.equal(law.log_prob_all.exp()[~mask], torch.zeros(2))
    (law.entropy().sum() + law.log_prob(torch.tensor([2, 1])).sum()).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[~mask], torch.zeros(2))
    assert (logits.grad[mask] != 0).all()
    draw = torch.Generator().manual_seed(0)
    drawn = torch.stack([law.sample(draw) for _ in range(200)])
    assert mask.gather(1, drawn.T).all()


def test_with_one_legal_choice_entropy_is_zero_and_everything_is_finite() -> None:
    logits = torch.tensor([[5.0, -3.0]], requires_grad=True)
    law = Categorical.of(logits, torch.tensor([[False, True]]))
    loss = law.entropy() + law.log_prob(torch.tensor([1]))
    loss.sum().backward()
    assert logits.grad is not None
    assert float(law.entropy().detach()) == 0
    assert torch.equal(logits.grad, torch.zeros(1, 2))


def test_choices_come_as_often_as_their_probability_says() -> None:
    probability = torch.tensor([0.1, 0.6, 0.3])
    law = Categorical.of(probability.log().expand(20_000, 3))
    drawn = law.sample(torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(share, probability, atol=0.015, rtol=0)


@pytest.mark.parametrize("raw", [(0.0, 0.0), (3.0, -2.0), (12.0, -4.0)])
def test_beta_density_integrates_to_one_and_its_entropy_is_its_mean_surprise(
    raw: tuple[float, float],
) -> None:
    law = Beta.of(torch.tensor([raw], dtype=torch.float64))
    edges = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    density = law.log_prob(middle).exp()
    assert float(density.mean()) == pytest.approx(1.0, abs=1e-4)
    surprise = -(density * law.log_prob(middle)).mean()
    assert float(law.entropy()) == pytest.approx(float(surprise), abs=1e-3)
    mean = (density * middle).mean()
    assert float(law.mode()) == pytest.approx(float(mean), abs=1e-4)


def test_beta_samples_have_the_mean_of_the_law_and_keep_off_the_ends() -> None:
    law = Beta.of(torch.tensor([2.0, -8.0]).expand(5000, 2))
    drawn = law.sample(torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(float(law.mode()[0]), abs=0.01)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert math.isfinite(float(law.log_prob(drawn).sum()))
