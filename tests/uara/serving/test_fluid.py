"""Servers that their devices divide: shares against the law that they are to fulfil."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from uara.network import NetworkState
from uara.serving.fluid import (
    FluidService,
    equal_shares,
    fluid_service,
    shares_met,
    square_root_shares,
    within_budget,
)

MakeState = Callable[..., NetworkState]

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


def test_newcomer_meets_the_share_that_it_would_have() -> None:
    server = torch.tensor([[0, 0, 0]])
    work, uses = torch.tensor([[1.0, 4.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert shares_met(None, work, uses, server, 1)[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0.5])
    decided = torch.tensor([[0.2, 0.6, 0.7]])
    # Those who are there keep what they were given; the third would make it 1.5.
    assert shares_met(decided, work, uses, server, 1)[0].tolist() == pytest.approx(
        [0.2, 0.6, 0.7 / 1.5]
    )


def two_on_the_second_server(make_state: MakeState, share: list[float]) -> FluidService:
    state = make_state(1, 2, 2, forward_fixed_s=[[9.0, 0.15]], forward_per_token_s=[[9.0, 1e-3]])
    own_s, server = torch.full((1, 2), 0.05), torch.tensor([[1, 1]])
    return fluid_service(state, server, own_s, torch.ones(1, 2), torch.tensor([share]))


def test_half_a_server_takes_twice_as_long(make_state: MakeState) -> None:
    service = two_on_the_second_server(make_state, [0.25, 0.5])
    assert service.verify_s[0].tolist() == pytest.approx([0.8, 0.4])
    assert service.prefill_tokens_per_s[0].tolist() == pytest.approx([250, 500])
    rate, prefill_s, lost_s = service.prefill_times(torch.tensor([[1000.0, 0.0]]))
    assert rate[0].tolist() == pytest.approx([250, 500])
    assert prefill_s[0].tolist() == pytest.approx([4, 0])
    assert (lost_s == 0).all()


def test_server_is_busy_with_the_passes_alone(make_state: MakeState) -> None:
    service = two_on_the_second_server(make_state, [0.25, 0.5])
    # Rounds of 1 s and 2 s, each with 0.2 s of the whole server's time.
    batch = service.batch(
        torch.tensor([[0.2, 1.6]]), torch.tensor([[1, 1]]), torch.tensor([[1.0, 1.0]])
    )
    assert batch.busy[0].tolist() == pytest.approx([0, 0.2 + 0.1])
    assert (batch.wait_s == 0).all()


def test_nothing_given_is_slow_and_not_infinite(make_state: MakeState) -> None:
    service = two_on_the_second_server(make_state, [0.0, 1.0])
    assert torch.isfinite(service.verify_s).all()
    assert service.verify_s[0, 0] > 1e5
