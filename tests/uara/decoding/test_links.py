"""The fluid link against integrals done by hand."""

from __future__ import annotations

import math

import pytest

from uara.decoding.links import FluidLink


def test_a_change_of_rate_applies_in_the_middle_of_a_frame() -> None:
    link: FluidLink[str] = FluidLink(rate_bps=1000.0)
    link.push("frame", 5000.0, now=1.0)
    assert link.next_finish() == pytest.approx(6.0)
    link.set_rate(250.0, now=3.0)  # 2000 bits are through, 3000 are left
    assert link.bits_left(3.0) == pytest.approx(3000.0)
    assert link.next_finish() == pytest.approx(15.0)
    link.set_rate(0.0, now=5.0)  # 2500 are left
    assert link.next_finish() == math.inf
    link.set_rate(2500.0, now=9.0)
    assert link.next_finish() == pytest.approx(10.0)
    assert link.pop(10.0) == "frame"
    assert link.busy_s == pytest.approx(5.0)


def test_frames_are_served_in_order_without_a_gap() -> None:
    link: FluidLink[int] = FluidLink(rate_bps=100.0)
    link.push(1, 100.0, now=0.0)
    link.push(2, 300.0, now=0.5)
    assert link.bits_left(0.5) == pytest.approx(350.0)
    assert link.next_finish() == pytest.approx(1.0)
    assert link.pop(1.0) == 1
    assert link.next_finish() == pytest.approx(4.0)
    assert link.pop(4.0) == 2
    assert link.next_finish() == math.inf
    link.push(3, 100.0, now=10.0)
    assert link.next_finish() == pytest.approx(11.0)


def test_an_old_announcement_is_told_from_a_valid_one() -> None:
    link: FluidLink[int] = FluidLink(rate_bps=100.0)
    link.push(1, 100.0, now=0.0)
    before = link.version
    link.push(2, 100.0, now=0.1)
    assert link.version == before, "a frame behind the head changes nothing"
    link.set_rate(50.0, now=0.5)
    assert link.version != before


def test_an_infinite_rate_serves_at_once() -> None:
    link: FluidLink[int] = FluidLink(rate_bps=math.inf)
    link.push(1, 1e9, now=2.0)
    assert link.next_finish() == 2.0
    assert link.bits_left(2.0) == 1e9
