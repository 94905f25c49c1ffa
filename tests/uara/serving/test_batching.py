"""The fixed point of batched servers against an event-by-event simulation."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.batch_queue import mean_cycles_s
from uara.serving.batching import Batch, BatchingConfig, solve_batching, sum_by_server

BASE_S = 0.15


def solve(
    think_s: Sequence[float],
    own_s: Sequence[float],
    *,
    base_s: Sequence[float] = (BASE_S,),
    server: Sequence[int] | None = None,
    participates: Sequence[float] | None = None,
    foreign_rows: float = 0.0,
) -> Batch:
    """Solve one network, (1, M); by default everybody is on one server."""
    count, servers = len(think_s), len(base_s)
    return solve_batching(
        torch.tensor([think_s]),
        torch.tensor([own_s]),
        torch.tensor([participates or [1.0] * count]),
        torch.tensor([server or [0] * count]),
        torch.tensor([base_s]),
        torch.full((1, servers), foreign_rows),
        torch.full((1, servers), 2e-3),
        BatchingConfig(),
    )


def cycles_s(batch: Batch, think_s: Sequence[float]) -> list[float]:
    return (torch.tensor([think_s]) + batch.wait_s + batch.verify_s)[0].tolist()


@pytest.mark.parametrize("think_s", [0.0, 0.04, 0.3, 2.0])
def test_lonely_device_cycles_exactly_as_simulated(think_s: float) -> None:
    simulated = mean_cycles_s([think_s], [2e-3], BASE_S, passes=200)
    assert cycles_s(solve([think_s], [2e-3]), [think_s]) == pytest.approx(simulated, rel=1e-5)


def test_cycles_of_two_to_six_drafting_devices_agree_with_the_simulation() -> None:
    draw = random.Random(5)
    errors = []
    for setting in range(20):
        think_s = [draw.uniform(0.06, 0.6) for _ in range(2 + setting % 5)]
        own_s = [draw.uniform(1e-3, 5e-3) for _ in think_s]
        simulated = statistics.fmean(mean_cycles_s(think_s, own_s, BASE_S, jitter=0.1))
        solved = statistics.fmean(cycles_s(solve(think_s, own_s), think_s))
        errors.append(abs(solved / simulated - 1))
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.1


def test_plain_decoding_devices_share_every_pass_and_never_wait() -> None:
    own_s = [1e-3, 2e-3, 4e-3]
    batch = solve([0.0] * 3, own_s)
    assert batch.wait_s.eq(0).all()
    simulated = mean_cycles_s([0.0] * 3, own_s, BASE_S, passes=300)
    assert cycles_s(batch, [0.0] * 3) == pytest.approx(simulated, rel=1e-4)
    assert batch.verify_s[0].tolist() == pytest.approx([BASE_S + 7e-3] * 3, rel=1e-4)
    assert batch.busy.item() == pytest.approx(1.0)


def test_foreign_rows_slow_devices_as_a_server_does_that_never_rests() -> None:
    # Think times off the multiples of a pass, where the jitter does not decide which pass is met.
    think_s, own_s = [0.1, 0.25], [2e-3, 2e-3]
    alone = cycles_s(solve(think_s, own_s), think_s)
    loaded = cycles_s(solve(think_s, own_s, foreign_rows=5.0), think_s)
    simulated = mean_cycles_s(think_s, own_s, BASE_S + 5 * 2e-3, jitter=0.1, never_rests=True)
    assert all(slow > fast for slow, fast in zip(loaded, alone, strict=True))
    assert statistics.fmean(loaded) == pytest.approx(statistics.fmean(simulated), rel=0.1)


def test_servers_do_not_touch_each_other() -> None:
    think_s, own_s = [0.1, 0.2, 0.3], [1e-3, 2e-3, 3e-3]
    together = solve(think_s, own_s, base_s=(0.1, 0.2), server=[0, 1, 0])
    first = solve([0.1, 0.3], [1e-3, 3e-3], base_s=(0.1,))
    second = solve([0.2], [2e-3], base_s=(0.2,))
    torch.testing.assert_close(together.verify_s[:, [0, 2]], first.verify_s)
    torch.testing.assert_close(together.verify_s[:, [1]], second.verify_s)
    torch.testing.assert_close(together.busy, torch.cat((first.busy, second.busy), 1))


def test_bystander_learns_its_times_without_changing_those_of_others() -> None:
    with_bystander = solve([0.1, 0.2], [1e-3, 2e-3], participates=[1.0, 0.0])
    alone = solve([0.1], [1e-3])
    torch.testing.assert_close(with_bystander.verify_s[:, :1], alone.verify_s)
    torch.testing.assert_close(with_bystander.busy, alone.busy)
    assert with_bystander.wait_s[0, 1] > 0
    assert with_bystander.presence[0, 1] == 0


def test_sum_by_server_adds_what_is_at_each() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    server = torch.tensor([[0, 2, 0], [1, 1, 1]])
    assert sum_by_server(values, server, 3).tolist() == [[5, 0, 2], [0, 56, 0]]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_devices_may_be_numbered_at_will(seed: int, order: list[int]) -> None:
    draw = random.Random(seed)
    think_s = [draw.choice([0.0, draw.uniform(0.02, 0.5)]) for _ in range(5)]
    own_s = [draw.uniform(1e-3, 5e-3) for _ in range(5)]
    server = [draw.randrange(2) for _ in range(5)]
    here = solve(think_s, own_s, base_s=(0.1, 0.2), server=server)
    there = solve(
        [think_s[i] for i in order],
        [own_s[i] for i in order],
        base_s=(0.1, 0.2),
        server=[server[i] for i in order],
    )
    torch.testing.assert_close(there.wait_s, here.wait_s[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.verify_s, here.verify_s[:, order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(there.busy, here.busy, rtol=1e-4, atol=1e-6)
