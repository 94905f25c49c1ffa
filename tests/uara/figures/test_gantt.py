"""The Gantt picture: what it draws of a plan by hand, and that a real one is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Batch, Plan, make_plan
from uara.control.plan.replay import replay
from uara.control.plan.tasks import draw_tasks
from uara.figures.gantt import draw_gantt, middle_rounds


def batch(rounds: int, wave: int = 0) -> Batch:
    return Batch((0,), 10, 2, rounds, wave, 1e9, 0.0, 1.0)


def plan_of(*batches: Batch) -> Plan:
    return Plan(batches, (1e6,), (0.0,), (0.1,), "equal_finish", 1e9, True)


@pytest.mark.parametrize(
    ("batches", "shown"),
    [
        ((batch(100), batch(80), batch(3, wave=1)), range(39, 43)),
        ((batch(5),), range(1, 5)),
        ((batch(2),), range(1, 3)),
    ],
)
def test_rounds_are_taken_from_the_middle_of_the_first_wave(
    batches: tuple[Batch, ...], shown: range
) -> None:
    assert middle_rounds(plan_of(*batches)) == (range(1, 2), shown)


@pytest.mark.parametrize("upload", ["equal_finish", "batch_by_batch"])
def test_the_picture_is_written_whole(tmp_path: Path, upload: str) -> None:
    config = HetEdgeConfig(
        users=12, output_tokens_max=40, memory_bytes=2.0e9, bits_per_token=1e4,
        upload=upload, memory_rule="in_flight",
    )  # fmt: skip
    plan = make_plan(config, draw_tasks(config, 1))
    path = tmp_path / "plan.png"
    draw_gantt(plan, replay(plan, config), path, limit_bytes=config.memory_bytes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
