"""The reproduction of PicoSpec's speeds, at a few tokens per figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.picospec import (
    CONFIG,
    Fit,
    Setting,
    chain_bound,
    fit,
    load,
    measure,
    run_cell,
)
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import RuleCode
from uara.errors import UserError

SMALL = load(CONFIG).model_copy(update={"tokens": 600, "session_tokens": 300})
QWEN, QWEN_HUMAN, LLAMA, LLAMA_HUMAN = SMALL.cells


def test_the_bound_of_one_chain_is_that_of_its_parts() -> None:
    # 24.365 ms per draft step, 71.99 ms per forward: 24.365 + .179 (47.5 + 71.99 - 24.365) ms.
    assert chain_bound(QWEN, 0.0475, 0.821, at_server=False) == pytest.approx(24.16, abs=0.02)
    later = chain_bound(QWEN, 0.0475, 0.821, at_server=True)
    assert later / QWEN.ar_tokens_per_s == pytest.approx(1.80, abs=0.01)


def test_the_papers_protocol_comes_out_near_its_printed_speed() -> None:
    for cell in SMALL.cells:
        speed = measure(SMALL, cell, Setting(Overlap(1), cell.draft_length, 0.0475))
        assert speed.tokens_per_s == pytest.approx(cell.published, rel=0.08)


def test_parts_that_are_taken_away_cost_speed() -> None:
    whole = Setting(Overlap(1), QWEN.draft_length, 0.0475)
    slow = Setting(Overlap(1, sends_first_ahead=False, judges_first=False), 4, 0.0475)
    waiting = Setting(Overlap(0, sends_first_ahead=False, judges_first=False), 4, 0.0475)
    rows = Setting(Overlap(1), 4, 0.0475, rule=RuleCode.TOPK, sends_rows=True)
    full, *less = [measure(SMALL, QWEN, s).tokens_per_s for s in (whole, slow, waiting, rows)]
    assert all(speed < 0.96 * full for speed in less)


def test_a_cell_reports_one_chain_below_its_bound() -> None:
    tiny = SMALL.model_copy(update={"tokens": 300, "max_draft_length": 3})
    row = run_cell(tiny, QWEN, Fit(0.0475, {"qwen": 0.005}))
    assert row.fitted_protocol < row.paper_protocol < row.best < row.bound


def test_a_grid_without_a_fitting_round_trip_is_refused() -> None:
    slow = SMALL.model_copy(update={"rtt_grid_s": (0.2,)})
    with pytest.raises(UserError, match="add a smaller round trip"):
        fit(slow)


def test_a_config_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.yaml")
    path = tmp_path / "odd.yaml"
    path.write_text("cells: []\nspeed: 3\n")
    with pytest.raises(UserError, match="speed") as caught:
        load(path)
    assert "\n" not in str(caught.value)
