"""The prediction against the event judge: a handful quickly, a subset at leisure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge import (
    Summary,
    kind_of,
    lone_cases,
    misses,
    shared_cases,
    summarise,
    write_json,
)
from benchmarks.judge_cases import Case, compare


@pytest.mark.parametrize("mode", ["sd", "server_ar", "device_only", "psd", "async"])
def test_a_device_alone_is_as_fast_as_judged(mode: str) -> None:
    (row,) = compare(Case(mode, rtt_s=0.02, seed=7), requests_per_device=25)
    assert kind_of(row) == "lone"
    assert abs(row.error) < 0.03


@pytest.mark.parametrize("mode", ["sd", "server_ar", "psd", "async", "mixed"])
def test_a_shared_server_is_as_fast_as_judged(mode: str) -> None:
    case = Case(mode, devices=8, window=2, rtt_s=0.02, token_work=4.0, seed=3)
    (row,) = compare(case, requests_per_device=3)
    assert kind_of(row) == "shared"
    assert 0.01 < row.offered_load < 0.8
    assert abs(row.error) < 0.08


@pytest.mark.parametrize("budget", ["verdict", 0.07])
def test_a_device_whose_drafts_are_cut_is_as_fast_as_judged(budget: Any) -> None:
    case = Case("async", codec="ids", rtt_s=0.0, draft_budget=budget, seed=77)
    (row,) = compare(case, requests_per_device=25)
    (whole,) = compare(replace(case, draft_budget=None), requests_per_device=10)
    assert abs(row.error) < 0.03
    assert row.judged_s < 0.97 * whole.judged_s, "the cut binds here"


def test_two_parallel_devices_always_wait_for_each_other() -> None:
    # Never in one pass for long, each comes back just behind the start of the other's pass.
    (row,) = compare(Case("psd", devices=2, rtt_s=0.01, seed=5), requests_per_device=3)
    assert abs(row.error) < 0.05


@pytest.mark.slow
def test_bounds_hold_on_other_devices_than_those_of_the_table() -> None:
    cases = lone_cases(seed=9) + shared_cases(seed=9)
    assert len(cases) >= 60
    rows = [
        row
        for case in cases
        for row in compare(case, requests_per_device=60 if case.devices == 1 else 4)
    ]
    assert misses(summarise(rows)) == []


def test_a_missed_bound_is_told() -> None:
    good = Summary("shared", "all", 1, 1, median=0.01, p90=0.02, worst=0.5, device_p90=0.5)
    assert misses([good, replace(good, kind="saturated", median=0.9)]) == []
    assert misses([replace(good, p90=0.09)]) == ["shared: p90 9.0% is above 8%"]
    lone = replace(good, kind="lone", worst=0.05)
    assert misses([lone]) == ["lone: worst 5.0% is above 3%"]


def test_rows_are_written_with_their_bounds(tmp_path: Path) -> None:
    rows = compare(Case("device_only"), requests_per_device=2)
    write_json(rows, summarise(rows), tmp_path / "judge.json")
    content = json.loads((tmp_path / "judge.json").read_text())
    assert content["bounds"] == {"lone": 0.03, "median": 0.04, "p90": 0.08, "load": 0.8}
    assert content["rows"][0]["case"]["mode"] == "device_only"
