"""Tails, goodput, fairness and costs of requests that were written down by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.config import EvaluationConfig
from experiments.request_metrics import DETAILS, RequestLog, jain_index
from uara.network import SlotOutcome


def outcome(finished: list[bool], e2e_s: list[float], ttft_s: list[float], failed: float
            ) -> SlotOutcome:  # fmt: skip
    """One slot of one network with two devices; each answer has 11 tokens."""
    done = torch.tensor([finished])
    one = torch.ones(1, 2)
    return SlotOutcome(
        alive_s=torch.zeros(1), tokens=5 * one, device_energy_j=2 * one,
        server_energy_j=torch.full((1, 3), 10.0), uplink_bits=8000 * one, downlink_bits=2000 * one,
        handover=torch.zeros(1, 2, dtype=torch.bool), finished=done,
        e2e_s=torch.tensor([e2e_s]) * done, ttft_s=torch.tensor([ttft_s]) * done,
        finished_tokens=11.0 * done, finished_task=torch.zeros(1, 2, dtype=torch.long),
        drained=torch.zeros(1, dtype=torch.bool), failed=torch.tensor([[failed, 0.0]]),
    )  # fmt: skip


def test_figures_of_three_requests() -> None:
    log = RequestLog()
    log.add(outcome([True, True], [4.0, 20.0], [1.0, 2.0], 0.0))
    log.add(outcome([True, False], [6.0, 9.9], [1.0, 9.9], 2.0))
    found = {k: v.item() for k, v in log.metrics(torch.tensor([5.0]), 10.0, 6.0).items()}
    assert found.keys() == DETAILS.keys()
    assert found["e2e_p95_s"] == pytest.approx(np.quantile([4, 20, 6], 0.95))
    assert found["ttft_p95_s"] == pytest.approx(np.quantile([1, 2, 1], 0.95))
    assert found["tpot_p95_s"] == pytest.approx(np.quantile([0.3, 1.8, 0.5], 0.95))
    assert found["goodput_per_s"] == pytest.approx(2 / 10)
    # 22 tokens in 10 s against 11 in 20 s
    assert found["fairness"] == pytest.approx((2.2 + 0.55) ** 2 / 2 / (2.2**2 + 0.55**2))
    assert found["kbyte_per_token"] == pytest.approx(4 * 10_000 / 8 / 20 / 1e3)
    assert found["device_j_per_token"] == pytest.approx(8 / 20)
    assert found["server_j_per_token"] == pytest.approx(60 / 20)
    assert found["failed_requests"] == pytest.approx(2 / 5)


def test_fairness_lies_between_one_for_all_and_one_for_one() -> None:
    shares = np.array([[2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0], [5.0, np.nan, 5.0, np.nan]])
    assert jain_index(shares).tolist() == [1.0, 0.25, 1.0]
    assert np.isnan(jain_index(np.full((1, 3), np.nan))).all()


def test_episode_without_requests_has_no_tail() -> None:
    log = RequestLog()
    log.add(outcome([False, False], [1.0, 1.0], [1.0, 1.0], 0.0))
    found = log.metrics(torch.tensor([0.0]), 10.0, 6.0)
    assert np.isnan(found["e2e_p95_s"]).all()
    assert np.isnan(found["fairness"]).all()


def test_deadline_at_its_default_leaves_no_trace_in_a_dump() -> None:
    assert "deadline_s" not in EvaluationConfig().model_dump()
    assert EvaluationConfig(deadline_s=5.0).model_dump()["deadline_s"] == 5.0
