"""Arrivals, lengths and acceptance of requests against the laws that they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from uara.world.requests import AnswerLengths, RequestConfig, RequestTable, TaskType, draw_requests

HORIZON_S = 60.0
CONFIG = RequestConfig(arrivals_per_s=0.1)
MEAN = torch.tensor([0.7, 0.6, 0.8, 0.95])
STD = torch.tensor([0.1, 0.05, 0.1, 0.1])


def standard_error(sample: Tensor) -> float:
    return (sample.std() / len(sample) ** 0.5).item()


@pytest.fixture(scope="module")
def table() -> RequestTable:
    return draw_requests(torch.arange(1500), 8, HORIZON_S, CONFIG, MEAN, STD)


def test_arrivals_are_poisson(table: RequestTable) -> None:
    counts = torch.isfinite(table.arrival_s).sum(2).flatten()
    mean = CONFIG.arrivals_per_s * HORIZON_S
    classes = torch.bincount(counts.clamp(max=14), minlength=15).numpy()
    law = stats.poisson(mean)
    expected = [law.pmf(k) for k in range(14)] + [law.sf(13)]
    test = stats.chisquare(classes, [len(counts) * share for share in expected])
    assert test.pvalue > 1e-3


def test_arrivals_rise_and_end_with_the_horizon(table: RequestTable) -> None:
    arrivals = table.arrival_s
    assert (arrivals > 0).all()
    finite = torch.isfinite(arrivals)
    assert (arrivals[finite] < HORIZON_S).all()
    both = finite[..., 1:]
    assert (arrivals[..., 1:][both] > arrivals[..., :-1][both]).all()
    # The table is long enough: its last place is always free.
    assert not finite[..., -1].any()


def test_gaps_between_arrivals_are_exponential() -> None:
    sparse = draw_requests(
        torch.arange(3000), 1, 1e6, RequestConfig(arrivals_per_s=1e-5), MEAN, STD
    )
    first = sparse.arrival_s[:, 0, 0]
    first = first[torch.isfinite(first)]
    assert stats.kstest(first.numpy(), "expon", args=(0, 1e5)).pvalue > 1e-3


def test_counts_by_slot_keep_every_request_and_its_waiting(table: RequestTable) -> None:
    counts, waiting_s = table.count_by_slot(120, 0.5)
    finite = torch.isfinite(table.arrival_s)
    assert torch.equal(counts.sum(2), finite.sum(2).float())
    network, slot = 17, 40
    times = table.arrival_s[network][finite[network]]
    inside = times[(times >= slot * 0.5) & (times < (slot + 1) * 0.5)]
    assert counts[network, :, slot].sum() == len(inside)
    ends_s = torch.ceil(times / 0.5) * 0.5
    assert waiting_s[network].sum() == pytest.approx((ends_s - times).sum().item(), rel=1e-4)


def test_tasks_come_in_proportion_to_their_weights(table: RequestTable) -> None:
    counts = torch.bincount(table.task.flatten(), minlength=4).numpy()
    weights = [task.weight for task in CONFIG.tasks]
    expected = [counts.sum() * weight / sum(weights) for weight in weights]
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("what", ["prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("task", range(4))
def test_lengths_have_the_mean_of_the_cut_exponential(
    table: RequestTable, task: int, what: str
) -> None:
    low, mean, high = (getattr(CONFIG.tasks[task], f"{what}_{e}") for e in ("min", "mean", "max"))
    lengths = getattr(table, what)[table.task == task].double()
    assert (lengths.min(), lengths.max()) == (low, high)
    assert torch.equal(lengths, lengths.round())
    # E min(X, h) for an exponential X of mean m is m (1 - exp(-h / m)).
    scale = mean - low
    law = low + scale * (1 - math.exp(-(high - low) / scale))
    assert lengths.mean().item() == pytest.approx(law, abs=5 * standard_error(lengths))


def test_photos_come_with_their_task_alone(table: RequestTable) -> None:
    for index, task in enumerate(CONFIG.tasks):
        assert (table.attachment_bits[table.task == index] == task.attachment_bits).all()


def test_acceptance_has_the_measured_mean_and_spread(table: RequestTable) -> None:
    for task in range(4):
        drawn = table.acceptance[table.task == task].double()
        # Near 1 the spread gives way, the mean does not.
        std = min(STD[task].item(), (0.98 - MEAN[task].item()) / math.sqrt(3))
        assert drawn.mean().item() == pytest.approx(MEAN[task].item(), abs=2e-3)
        assert drawn.std().item() == pytest.approx(std, rel=0.02)
        assert 0 < drawn.min() <= drawn.max() < 1


@pytest.mark.parametrize("mean", [0.05, 0.5, 0.97])
def test_wide_spread_of_acceptance_stays_inside_and_keeps_the_mean(mean: float) -> None:
    wide = torch.full((4,), 0.5)
    table = draw_requests(torch.arange(200), 8, HORIZON_S, CONFIG, torch.full((4,), mean), wide)
    assert 0 < table.acceptance.min() <= table.acceptance.max() < 1
    assert table.acceptance.double().mean().item() == pytest.approx(mean, abs=0.01)


def test_no_spread_gives_everybody_the_mean() -> None:
    config = RequestConfig(acceptance_spread=0.0)
    even = draw_requests(torch.arange(3), 2, HORIZON_S, config, MEAN, STD)
    torch.testing.assert_close(even.acceptance, MEAN[even.task])


def test_same_key_gives_the_same_requests_in_any_batch(table: RequestTable) -> None:
    alone = draw_requests(torch.tensor([1234]), 8, HORIZON_S, CONFIG, MEAN, STD)
    assert torch.equal(alone.arrival_s[0], table.arrival_s[1234])
    assert torch.equal(alone.output_tokens[0], table.output_tokens[1234])
    assert torch.equal(alone.acceptance[0], table.acceptance[1234])
    fewer = draw_requests(torch.tensor([1234]), 3, HORIZON_S, CONFIG, MEAN, STD)
    assert torch.equal(fewer.prompt_tokens[0], table.prompt_tokens[1234, :3])


@pytest.mark.parametrize("tokens_so_far", [0, 20, 32, 60, 120, 200, 250])
def test_expected_remaining_tokens_given_that_the_answer_goes_on(tokens_so_far: int) -> None:
    # Chat: 32 tokens and an exponential part of mean 64, cut at 256.
    uniform = torch.rand(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    length = (32 - 64 * uniform.log()).clamp(max=256)
    left = length[length > tokens_so_far] - tokens_so_far
    expected = AnswerLengths.of(CONFIG).expected_remaining_tokens(
        torch.tensor([float(tokens_so_far)]), torch.tensor([0])
    )
    assert expected.item() == pytest.approx(left.mean().item(), abs=5 * standard_error(left))


def test_expected_remaining_tokens_fit_the_answers_that_are_drawn(table: RequestTable) -> None:
    law = AnswerLengths.of(CONFIG)
    for task in range(4):
        length = table.output_tokens[table.task == task]
        for so_far in (0.0, 40.0, 100.0):
            left = length[length > so_far] - so_far
            expected = law.expected_remaining_tokens(torch.tensor(so_far), torch.tensor(task))
            # Drawn answers are whole tokens, which moves the mean by up to a half.
            slack = 0.5 + 5 * standard_error(left)
            assert expected.item() == pytest.approx(left.mean().item(), abs=slack)


def test_at_least_one_token_remains_of_an_answer_that_goes_on() -> None:
    remaining = AnswerLengths.of(CONFIG).expected_remaining_tokens(
        torch.tensor([255.9, 256.0, 300.0]), torch.zeros(3, dtype=torch.long)
    )
    assert (remaining >= 1).all()


def test_lengths_that_do_not_rise_are_refused() -> None:
    chat = CONFIG.tasks[0].model_dump()
    with pytest.raises(ValidationError, match="they must rise"):
        TaskType(**{**chat, "prompt_tokens_mean": 100.0})
