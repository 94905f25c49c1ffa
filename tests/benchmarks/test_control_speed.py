"""The table of times: what is timed is what is named, and states are as crowded as promised."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from benchmarks.control_speed import CONTROLLERS, Row, crowded_state, decider, least_ms, show
from uara.errors import UserError
from uara.network import Decision


def test_rules_and_controllers_are_timed_in_a_crowded_world() -> None:
    state, physics = crowded_state(2, 5, 3)
    assert state.has_request.float().mean() > 0.9
    server = decider("greedy_latency", state, physics)()
    assert isinstance(server, torch.Tensor)
    for name in CONTROLLERS:
        assert isinstance(decider(name, state, physics)(), Decision)
    assert least_ms(decider("max_gain", state, physics), repeats=2) > 0


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    state, physics = crowded_state(1, 3, 2)
    with pytest.raises(UserError, match=r"'fastest' is unknown; allowed: random, .*controller:"):
        decider("fastest", state, physics)


def test_the_table_has_a_line_per_rule_and_a_column_per_size() -> None:
    console = Console(record=True, width=100)
    sizes = ((1, 8, 3), (2, 30, 4))
    show([Row(name, *size, 1.5) for size in sizes for name in ("a_rule", "another")], console)
    text = console.export_text()
    assert text.count("1.5") == 4
    assert all(word in text for word in ("a_rule", "another", "8 x 3", "30 x 4"))
