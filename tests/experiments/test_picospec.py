"""The reproduction of PicoSpec's speeds, at a few tokens per figure."""

from __future__ import annotations

from dataclasses import replace
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
from experiments.picospec_branches import forms, premises
from experiments.picospec_sweep import draw, sweep, sweep_tables, write_csv
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


def test_branches_lift_one_chain_by_what_is_guessed_and_cost_what_they_share() -> None:
    form = Setting(
        Overlap(2, guesses=3, branch_length=3), 3, 0.0475, hit_rate=0.65, branch_share=0.01
    )
    plain = replace(form, overlap=Overlap(2))
    changes = [{}, {"hit_rate": 0.0}, {"branch_share": 0.124}]
    best, missed, dear = (
        measure(SMALL, LLAMA, replace(form, **change), tokens=300).tokens_per_s
        for change in changes
    )
    none = measure(SMALL, LLAMA, plain, tokens=300).tokens_per_s
    assert best > 1.05 * max(none, missed)
    assert dear < 0.97 * best


def test_premises_are_the_shipped_measurements_beside_an_assumption(tmp_path: Path) -> None:
    assumed, phone, machine = premises()
    assert (assumed.hit_rates, assumed.branch_share) == ({3: 0.65}, 0.01)
    assert phone.hit_rates == machine.hit_rates
    assert 0.3 < phone.hit_rates[1] < phone.hit_rates[3] < 0.8
    assert phone.branch_share < 0.05 < machine.branch_share
    for form in forms(QWEN, phone, 0.0475):
        assert form.hit_rate == phone.hit_rates[form.overlap.guesses]
    with pytest.raises(UserError, match="uara pair branches"):
        premises(tmp_path / "none.json")


def test_a_sweep_is_written_a_line_per_point_and_drawn(tmp_path: Path) -> None:
    tiny = SMALL.model_copy(
        update={
            "tokens": 60,
            "session_tokens": 10,
            "max_draft_length": 2,
            "sweep_rtt_s": (0.02, 0.2),
            "sweep_bps": (1e5, 1e8),
            "cells": (QWEN,),
        }
    )
    points = sweep(tiny)
    assert len(points) == 2 * 2 * 2
    ratio = {(p.axis, p.value, p.draft_length): p.ratio for p in points}
    assert ratio["rtt_ms", 20.0, 2] > ratio["rtt_ms", 200.0, 2]
    assert ratio["bandwidth_mbps", 100.0, 2] > ratio["bandwidth_mbps", 0.1, 2]
    write_csv(points, tmp_path / "sweep.csv")
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 9
    draw(points, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    assert len(sweep_tables(points)) == 2
