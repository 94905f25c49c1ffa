"""Advantages against their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.gae import gae, next_values


def _advantage_by_definition(
    reward: Tensor, value: Tensor, following: Tensor, terminated: Tensor, truncated: Tensor
) -> Tensor:
    """Weigh all n-step estimates: (1 - l) sum l^(n-1) A^(n), the last one with what is left."""
    discount, trace = 0.9, 0.7
    slots, networks, columns = reward.shape
    result = torch.zeros_like(reward)
    # Plain lists: indexing tensors number by number takes seconds.
    r, v, f = reward.tolist(), value.tolist(), following.tolist()
    ends, cuts = terminated.tolist(), truncated.tolist()
    for t in range(slots):
        for b in range(networks):
            for k in range(columns):
                total, discounted, weight = 0.0, 0.0, 1.0
                for n in range(1, slots - t + 1):
                    s = t + n - 1
                    discounted += discount ** (n - 1) * r[s][b][k]
                    tail = 0.0 if ends[s][b] else discount**n * f[s][b][k]
                    estimate = discounted + tail - v[t][b][k]
                    is_last = ends[s][b] or cuts[s][b] or s == slots - 1
                    total += (weight if is_last else weight * (1 - trace)) * estimate
                    weight *= trace
                    if is_last:
                        break
                result[t, b, k] = total
    return result


def test_gae_is_the_weighted_mean_of_all_n_step_estimates_within_an_episode() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, value, final = torch.randn(3, 9, 4, 2, generator=draw, dtype=torch.float64)
    last = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    truncated = torch.rand(9, 4, generator=draw) < 0.2
    terminated = (torch.rand(9, 4, generator=draw) < 0.2) & ~truncated
    assert truncated.any()
    assert terminated.any()
    following = next_values(value, last, final, truncated)
    found = gae(reward, value, following, terminated, truncated, discount=0.9, trace=0.7)
    expected = _advantage_by_definition(reward, value, following, terminated, truncated)
    torch.testing.assert_close(found, expected)


def test_truncation_is_followed_by_its_own_last_observation_and_not_by_the_next_episode() -> None:
    value = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    final = torch.full((3, 1, 1), 50.0)
    truncated = torch.tensor([[False], [True], [False]])
    following = next_values(value, torch.tensor([[4.0]]), final, truncated)
    assert following.flatten().tolist() == [2.0, 50.0, 4.0]


@pytest.mark.parametrize("trace", [0.0, 0.95, 1.0])
def test_constant_reward_cut_by_time_is_worth_one_over_one_minus_gamma(trace: float) -> None:
    discount, slots = 0.9, 40
    truncated = (torch.arange(slots) % 7 == 6).unsqueeze(1)
    never = torch.zeros_like(truncated)
    value = torch.zeros(slots, 1, 1)
    for _ in range(200):
        following = next_values(value, value[0], value, truncated)
        reward = torch.ones_like(value)
        advantage = gae(reward, value, following, never, truncated, discount=discount, trace=trace)
        value = value + advantage
    torch.testing.assert_close(value, torch.full_like(value, 10.0))
