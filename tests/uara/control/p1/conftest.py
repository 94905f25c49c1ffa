"""Small instances of P1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from uara.control.p1.instances import draw_problem
from uara.control.p1.problem import Problem
from uara.control.p1.readings import P1Config

Draw = Callable[..., Problem]


@pytest.fixture
def draw() -> Draw:
    """Draw instances: `draw(networks, devices, servers, **readings)`."""

    def make(networks: int, devices: int, servers: int, **readings: Any) -> Problem:
        generator = torch.Generator().manual_seed(5)
        return draw_problem(P1Config(**readings), networks, devices, servers, generator)

    return make


def relabelled(problem: Problem, device: Tensor, server: Tensor) -> Problem:
    """Give devices and servers other numbers: new number k was `device[k]`, `server[k]`."""
    by_device = ("device_time_s", "payload_bits", "power_w", "compute_energy_j", "battery")
    by_server = ("band_hz", "queue_s", "capacity_flop_per_s")
    by_both = ("work_s", "gain", "noise_w_per_hz")
    return replace(
        problem,
        **{name: getattr(problem, name)[:, device] for name in by_device},
        **{name: getattr(problem, name)[:, server] for name in by_server},
        **{name: getattr(problem, name)[:, device][:, :, server] for name in by_both},
    )


@pytest.fixture
def relabel() -> Callable[[Problem, Tensor, Tensor], Problem]:
    return relabelled
