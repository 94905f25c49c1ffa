"""The diagnosis: blind controllers, verdicts, loads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.comparison import rule_controller
from experiments.config import TaskConfig
from experiments.diagnose import (
    Finding,
    OneServer,
    diagnose,
    equal_gains,
    equal_servers,
    verdict,
)
from experiments.evaluation import evaluate_controller, make_world
from experiments.latency_parts import PARTS, measure_time_use
from uara.control.association import best_in_reach
from uara.figures.diagnosis import draw_diagnosis
from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.bank import ChannelBank
from uara.serving.modes import MODES


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


def finding(name: str, rule: str, holds: bool) -> Finding:
    return Finding(name, 1.0, f"at least 5 % (rule {rule})", holds)


def test_the_verdict_names_what_is_worth_learning_and_what_is_not() -> None:
    findings = [
        finding("modes", "1: speculation pays", True),
        finding("spread", "2: greedy leads", True),
        finding("gains", "3: radio decides", True),
        finding("servers", "3: compute decides", True),
        finding("power", "3: power matters", False),
        finding("split", "4: the split matters", True),
        Finding("load of a", 90.0, "1 to 80 % (rule 5)", False),
    ]
    text = verdict(findings)
    assert "Worth learning here: association, the split of bandwidth;" in text
    assert "not worth it: transmit power;" in text
    assert "outside its range: load of a" in text
    assert "serving mode" not in text
    blind = [replace(f, holds=False) if "radio" in f.rule else f for f in findings]
    assert "not worth it: association, transmit power" in verdict(blind)
    idle = [replace(f, holds=False) if "rule 1" in f.rule else f for f in findings]
    assert "speculation does not pay" in verdict(idle)


def test_the_parts_of_time_add_up_and_need_a_cause(task: TaskConfig, bank: ChannelBank) -> None:
    use = measure_time_use(
        rule_controller("greedy_latency", task), task, bank, split="evaluation", episodes=4
    )
    assert set(use.share) == set(PARTS)
    assert sum(use.share.values()) == pytest.approx(1)
    assert min(use.share.values()) >= 0
    assert use.share["verify"] > 0.05
    assert use.server_load.shape == use.band_load.shape == (4, 2)
    assert (use.band_load >= 0).all()
    assert (use.band_load <= 1 + 1e-6).all()
    plain = task.model_copy(
        update={"physics": task.physics.model_copy(update={"mode": "server_ar"})}
    )
    without = measure_time_use(
        rule_controller("greedy_latency", plain), plain, bank, split="evaluation", episodes=4
    )
    assert without.share["draft"] == without.share["uplink"] == without.share["path"] == 0


@pytest.mark.slow
def test_the_diagnosis_compares_with_greedy(
    task: TaskConfig, bank: ChannelBank, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    result = diagnose(
        task, bank, split="evaluation", episodes=6, progress=lambda *at: seen.append(at)
    )
    assert seen == [(k + 1, len(seen)) for k in range(len(seen))]
    findings = result.findings
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings)
    assert {row.mode for row in result.modes} == set(MODES)
    draw_diagnosis(
        {f.name: f.percent for f in findings},
        {row.mode: (row.e2e_s, row.tpot_s) for row in result.modes},
        result.spread,
        result.time_use.share,
        tmp_path / "diagnosis.png",
    )
    assert (tmp_path / "diagnosis.png").stat().st_size > 20_000

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
