"""Servers that their devices divide: shares against the law that they are to fulfil."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from uara.serving.fluid import equal_shares, fluid_service, square_root_shares, within_budget

works = st.lists(st.floats(0.01, 5), min_size=2, max_size=5)


def on_one_server(work_s: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    work = torch.tensor([work_s])
    return work, torch.zeros_like(work, dtype=torch.long)


@given(works)
@settings(max_examples=25, deadline=None)
def test_square_root_shares_are_the_least_total_time(work_s: list[float]) -> None:
    work, server = on_one_server(work_s)
    share = square_root_shares(work, server, 1)
    assert share.sum().item() == pytest.approx(1, rel=1e-5)
    start = np.full(len(work_s), 1 / len(work_s))
    best = minimize(
        lambda z: (np.array(work_s) / z).sum(),
        start,
        bounds=[(1e-3, 1)] * len(work_s),
        constraints={"type": "eq", "fun": lambda z: z.sum() - 1},
    )
    assert (work / share).sum().item() == pytest.approx(best.fun, rel=1e-3)


def test_shares_add_up_on_each_server_and_idle_devices_take_nothing() -> None:
    server = torch.tensor([[0, 1, 0, 1]])
    uses = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert equal_shares(uses, server, 3).tolist() == [[0.5, 1.0, 0.5, 0.0]]
    work = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    assert square_root_shares(work, server, 3)[0].tolist() == pytest.approx([1 / 3, 1, 2 / 3, 0])
    decided = torch.tensor([[0.9, 0.3, 0.9, 5.0]])
    assert within_budget(decided, uses, server, 3)[0].tolist() == pytest.approx([0.5, 0.3, 0.5, 0])


def test_half_a_server_takes_twice_as_long() -> None:
    server = torch.tensor([[1, 1]])
    service = fluid_service(
        torch.tensor([[0.5, 1.0]]), torch.tensor([[0.2, 0.2]]), torch.tensor([[9.0, 1e-3]]), server
    )
    assert service.verify_s[0].tolist() == pytest.approx([0.4, 0.2])
    assert service.prefill_tokens_per_s[0].tolist() == pytest.approx([500, 1000])


def test_nothing_given_is_slow_and_not_infinite() -> None:
    service = fluid_service(
        torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long)
    )
    assert torch.isfinite(service.verify_s).all()
    assert service.verify_s > 1e5
