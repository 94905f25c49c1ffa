"""The scale of values, and what must not depend on it."""

from __future__ import annotations

import torch

from agents.gae import gae
from agents.mappo import normalise_advantage
from agents.value_norm import ValueNorm


def test_denormalising_undoes_normalising() -> None:
    norm = ValueNorm()
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        norm.update(1e-4 * torch.randn(50, generator=draw) - 7)
    value = torch.tensor([-7.1, -7.0, -6.9], dtype=torch.float64)
    torch.testing.assert_close(norm.denormalise(norm.normalise(value)), value)


def test_before_any_target_values_pass_unchanged() -> None:
    value = torch.tensor([-3.0, 5.0])
    assert torch.equal(ValueNorm().normalise(value), value)


def test_first_targets_are_brought_to_zero_mean_and_unit_deviation() -> None:
    norm = ValueNorm(decay=0.99)
    target = 4 + 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    norm.update(target)
    normal = norm.normalise(target)
    torch.testing.assert_close(normal.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_normalised_advantages_do_not_depend_on_the_unit_of_the_reward() -> None:
    draw = torch.Generator().manual_seed(0)
    reward = torch.randn(20, 3, 1, generator=draw, dtype=torch.float64)
    prediction = torch.randn(20, 3, 1, generator=draw, dtype=torch.float64)
    active = torch.rand(20, 3, 1, generator=draw) < 0.7
    never = torch.zeros(20, 3, dtype=torch.bool)

    def advantage(scale: float) -> torch.Tensor:
        norm = ValueNorm()
        norm.update(scale * torch.linspace(-5, 1, 40))
        value = norm.denormalise(prediction)
        following = torch.cat((value[1:], value[:1]))
        found = gae(scale * reward, value, following, never, never, discount=0.9, trace=0.9)
        return normalise_advantage(found, active)

    # The smallest of these units makes variances far below any absolute floor.
    torch.testing.assert_close(advantage(1e-3), advantage(1.0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(advantage(1e3), advantage(1.0), atol=1e-5, rtol=1e-4)
