"""Counter-based draws: uniform, independent, and functions of their keys alone."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from uara.world.streams import uniform


@pytest.mark.parametrize("key", [0, 1, -1, 2**62])
def test_draws_are_uniform(key: int) -> None:
    draws = uniform(key, torch.arange(20_000))
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


def test_draws_lie_strictly_between_zero_and_one() -> None:
    draws = uniform(torch.arange(100_000), 3)
    assert 0 < draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1


def test_a_million_keys_give_a_million_draws() -> None:
    draws = uniform(torch.arange(100)[:, None, None], torch.arange(100)[:, None], torch.arange(100))
    assert draws.unique().numel() == 1_000_000


def test_draw_does_not_depend_on_what_else_is_drawn() -> None:
    episode = torch.arange(50)[:, None]
    device = torch.arange(20)
    table = uniform(episode, device, 7)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(episode[shuffled], device, 7), table[shuffled])
    assert uniform(31, 12, 7) == table[31, 12]


def test_order_of_the_keys_matters() -> None:
    first, second = torch.arange(200)[:, None], torch.arange(200)
    off_diagonal = first != second
    here, there = uniform(first, second), uniform(second, first)
    assert torch.equal(here, there.T)
    assert (here != there)[off_diagonal].all()
    assert abs(torch.corrcoef(torch.stack((here[off_diagonal], there[off_diagonal])))[0, 1]) < 0.02


def test_neighbouring_keys_are_uncorrelated() -> None:
    table = uniform(torch.arange(400)[:, None], torch.arange(400)) - 0.5
    draws = table.numel()
    for shifted in (table.roll(1, 0), table.roll(1, 1), table.roll((1, 1), (0, 1))):
        # The mean of n products of independent uniforms has standard deviation 1 / (12 sqrt n).
        assert abs((table * shifted).mean()) < 5 / 12 / draws**0.5
