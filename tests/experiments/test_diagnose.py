"""The diagnosis: blind controllers, verdicts, loads."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.comparison import rule_controller
from experiments.config import TaskConfig
from experiments.diagnose import OneServer, diagnose, equal_gains, equal_servers
from experiments.evaluation import evaluate_controller, make_world
from uara.control.association import best_in_reach
from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.bank import ChannelBank


@pytest.fixture
def state(task: TaskConfig, bank: ChannelBank) -> NetworkState:
    world = make_world(task, bank, 2)
    world.reset(torch.ones(2, dtype=torch.bool), torch.tensor([4, 5]), torch.tensor([1, 2]))
    return world.state()


def test_equal_gains_leave_each_device_its_mean_in_db(state: NetworkState) -> None:
    blind = equal_gains(state)
    mean_db = 10 * state.gain.log10().mean(-1)
    for server in range(2):
        assert torch.allclose(10 * blind.gain[..., server].log10(), mean_db, atol=1e-3)
    assert bool(blind.reachable.all())
    # what is left to choose by is nothing: the first of equals
    assert bool((best_in_reach(blind.gain, blind) == 0).all())


def test_equal_servers_are_the_mean_rack(state: NetworkState) -> None:
    blind = equal_servers(state)
    fixed_s = [0.145, 140e9 / 0.696e12]
    assert blind.forward_fixed_s.flatten().tolist() == pytest.approx([sum(fixed_s) / 2] * 4)
    assert torch.equal(blind.gain, state.gain)


@pytest.mark.slow
def test_the_diagnosis_compares_with_greedy(task: TaskConfig, bank: ChannelBank) -> None:
    findings = diagnose(task, bank, split="evaluation", episodes=6)
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings) == 10

    def mean(controller: object) -> float:
        rows = evaluate_controller(controller, task, bank, episodes=6)  # type: ignore[arg-type]
        return rows.interval("e2e_latency_s").mean

    greedy = mean(rule_controller("greedy_latency", task))
    ones = [mean(OneServer(j, task.allocation, Physics.of(task.physics))) for j in range(2)]
    one = by_name["best one-server rule"]
    assert one.percent == pytest.approx(100 * (min(ones) / greedy - 1))
    assert one.holds == (one.percent >= 3)
    loads = [finding for finding in findings if finding.name.startswith("load of ")]
    assert [load.name for load in loads] == ["load of 4xA100-40GB (0)", "load of 4xA40 (1)"]
    for finding in findings:
        assert math.isfinite(finding.percent)
    for load in loads:
        assert load.holds == (1 <= load.percent <= 80)
