"""Lengths of other laws than the exponential: drawn and expected, against Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch

from uara.world.requests import AnswerLengths, RequestConfig, TaskType, draw_requests

BASE = {
    "name": "chat",
    "weight": 1.0,
    "prompt_tokens_min": 100,
    "prompt_tokens_mean": 1000,
    "prompt_tokens_max": 4000,
    "output_tokens_min": 32,
    "output_tokens_mean": 96,
    "output_tokens_max": 256,
}
LOGNORMAL = TaskType(**BASE, length_law="lognormal", length_sigma=0.8)
FIXED = TaskType(**BASE, length_law="fixed")
NORMAL = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# A lognormal law of mean 64 above 32 tokens, cut at 256.
ANSWERS = (32 + 64 * torch.exp(0.8 * NORMAL - 0.32)).clamp(max=256)


def drawn(task: TaskType, what: str) -> torch.Tensor:
    config = RequestConfig(arrivals_per_s=0.3, tasks=(task,))
    table = draw_requests(
        torch.arange(400), 8, 60.0, config, torch.tensor([0.7]), torch.tensor([0.1])
    )
    lengths: torch.Tensor = getattr(table, what)
    return lengths.flatten()


def test_lognormal_answers_have_their_law() -> None:
    lengths = drawn(LOGNORMAL, "output_tokens").double()
    assert lengths.mean().item() == pytest.approx(ANSWERS.mean().item(), rel=0.01)
    for quantile in (0.1, 0.5, 0.9):
        expected = ANSWERS.quantile(quantile).item()
        assert lengths.quantile(quantile).item() == pytest.approx(expected, abs=1.5)
    assert torch.equal(lengths, lengths.round())


@pytest.mark.parametrize("so_far", [0, 20, 40, 80, 150, 240])
def test_expected_rest_of_a_lognormal_answer(so_far: int) -> None:
    rest = ANSWERS[so_far < ANSWERS] - so_far
    law = AnswerLengths.of(RequestConfig(tasks=(LOGNORMAL,)))
    expected = law.expected_remaining_tokens(torch.tensor([float(so_far)]), torch.tensor([0]))
    error = 5 * rest.std().item() / math.sqrt(len(rest))
    assert expected.item() == pytest.approx(rest.mean().item(), abs=error)


def test_fixed_lengths_are_the_means_and_known() -> None:
    assert (drawn(FIXED, "output_tokens") == 96).all()
    assert (drawn(FIXED, "prompt_tokens") == 1000).all()
    law = AnswerLengths.of(RequestConfig(tasks=(FIXED,)))
    rest = law.expected_remaining_tokens(torch.tensor([0.0, 50.0, 95.5]), torch.zeros(3).long())
    assert rest.tolist() == pytest.approx([96, 46, 1])


def test_each_task_has_its_own_law() -> None:
    tasks = (LOGNORMAL, FIXED, TaskType(**BASE))
    law = AnswerLengths.of(RequestConfig(tasks=tasks))
    alone = AnswerLengths.of(RequestConfig(tasks=tasks[2:]))
    so_far = torch.tensor([40.0])
    mixed = law.expected_remaining_tokens(so_far, torch.tensor([2]))
    assert torch.equal(mixed, alone.expected_remaining_tokens(so_far, torch.tensor([0])))
    assert law.expected_remaining_tokens(so_far, torch.tensor([1])).item() == 56
