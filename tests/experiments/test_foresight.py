"""What foresight is worth: the positive control, the bound, and the line that says so."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.config import TaskConfig
from experiments.foresight import Foresight, measure_foresight
from experiments.statistics import Interval
from uara.control.lookahead import LookAheadConfig
from uara.errors import UserError
from uara.radio.bank import ChannelBank

SHORT = LookAheadConfig(futures=2, slots=4)


def test_the_line_says_what_was_found() -> None:
    worth = Foresight(
        "greedy_latency", "max_compute", Interval(6.0, 5.2, 6.8), Interval(9.0, 8, 10),
        Interval(20.0, 15, 25),
    )  # fmt: skip
    assert worth.is_sequential
    assert worth.words() == (
        "foresight over greedy_latency is worth 6.0 % [5.2, 6.8], with the true future 9.0 % "
        "[8.0, 10.0] (positive control passed: 20.0 % [15.0, 25.0] over max_compute)"
    )
    small = dataclasses.replace(worth, sampled=Interval(5.5, 4.9, 6.1))
    assert not small.is_sequential
    broken = dataclasses.replace(worth, control=Interval(1.0, -1, 3))
    assert not broken.is_sequential
    assert "control FAILED" in broken.words()
    assert broken.as_json()["control_passes"] is False


@pytest.mark.slow
def test_look_ahead_improves_a_weak_rule(task: TaskConfig, bank: ChannelBank) -> None:
    seen: list[tuple[int, int]] = []
    worth = measure_foresight(
        task, bank, split="evaluation", episodes=12, base="random", weak_base="random",
        config=SHORT,
        progress=lambda *at: seen.append(at),
    )  # fmt: skip
    # the base is the weak one here: both are the same measurement
    assert worth.sampled == worth.control
    assert worth.control.mean > 0
    # knowing the future is no worse, up to the luck of a few episodes
    assert worth.true.mean >= worth.sampled.low
    assert all(done <= total for done, total in seen)


def test_a_bank_without_worlds_is_refused(task: TaskConfig, bank: ChannelBank) -> None:
    config = bank.config.model_copy(update={"tuning": 0, "evaluation": 4})
    with pytest.raises(UserError, match="no tuning worlds"):
        measure_foresight(task, dataclasses.replace(bank, config=config))
