"""Shares of a step: a stage inside another counts by itself."""

from __future__ import annotations

import pytest

from benchmarks import env_stages


def test_time_of_an_inner_stage_is_taken_off_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def spend(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(env_stages.time, "process_time", lambda: now_s)
    clock = env_stages._Clock()
    inner = clock.watch("inner", lambda: spend(3.0))

    def slot() -> str:
        spend(1.0)
        inner()
        inner()
        spend(1.0)
        return "played"

    assert clock.watch("outer", slot)() == "played"
    assert clock.spent == {"inner": 6.0, "outer": 2.0}
