"""Shares of fluid servers, and Johnson's order against all orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.compute_share import (
    COMPUTE_RULES,
    equal_compute,
    johnson_order,
    proportional_compute,
    serial_finish_s,
    square_root_compute,
)
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig

MakeState = Callable[..., NetworkState]
FLUID = Physics.of(PhysicsConfig(service="fluid"))


def decision(state: NetworkState) -> Decision:
    length = torch.full_like(state.phase, 3)
    return Decision(
        torch.zeros_like(length), torch.full_like(state.age_s, 2e5), state.power_max_w, length
    )


def two_decoding(make_state: MakeState) -> NetworkState:
    # Alike but for the tokens still to come: four times as many.
    return make_state(
        1, 4, 1, phase=[[Phase.DECODING, Phase.DECODING, Phase.UPLOADING, Phase.IDLE]], server=0,
        upload_bits=[[0, 0, 1e6, 0]], prompt_tokens=1000, tokens_so_far=10, kv_tokens=1010,
        expected_remaining_tokens=[[20, 80, 50, 50]], acceptance=0.7, gain=1e-10,
        draft_time_s=0.02,
    )  # fmt: skip


def test_shares_go_to_those_who_use_their_server_now(make_state: MakeState) -> None:
    state = two_decoding(make_state)
    for name, rule in COMPUTE_RULES.items():
        share = rule(state, decision(state), FLUID)[0]
        assert share[2:].tolist() == [0, 0], name
        assert share.sum().item() == pytest.approx(1), name


def test_shares_follow_the_remaining_work(make_state: MakeState) -> None:
    state = two_decoding(make_state)
    shares = [
        rule(state, decision(state), FLUID)[0, :2].tolist()
        for rule in (equal_compute, square_root_compute, proportional_compute)
    ]
    expected = [[1 / 2, 1 / 2], [1 / 3, 2 / 3], [1 / 5, 4 / 5]]
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


def test_batched_servers_have_no_shares(physics: Physics) -> None:
    with pytest.raises(UserError, match=r"equal_compute but physics.service is batched"):
        Allocator(AllocationConfig(compute_share="equal_compute"), physics)


@pytest.mark.parametrize("seed", range(10))
def test_no_order_of_jobs_ends_sooner_than_johnsons(seed: int) -> None:
    random = np.random.default_rng(seed)
    upload, compute = random.integers(1, 9, (2, 1, 6))
    jobs = [torch.from_numpy(times).double() for times in (upload, compute)]
    orders = np.array(list(itertools.permutations(range(6))))
    sent, done = np.zeros(len(orders)), np.zeros(len(orders))
    for turn in range(6):
        job = orders[:, turn]
        sent = sent + upload[0, job]
        done = np.maximum(done, sent) + compute[0, job]
    order = johnson_order(*jobs)
    assert serial_finish_s(*jobs, order).max().item() == done.min()
    some = torch.from_numpy(orders[::97])
    finish = serial_finish_s(*(times.expand(len(some), -1) for times in jobs), some)
    np.testing.assert_allclose(finish.max(1).values, done[::97])


def test_equal_jobs_keep_their_order() -> None:
    order = johnson_order(
        torch.tensor([[1.0, 5.0, 1.0, 5.0]]), torch.tensor([[3.0, 2.0, 3.0, 2.0]])
    )
    assert order.tolist() == [[0, 2, 1, 3]]
