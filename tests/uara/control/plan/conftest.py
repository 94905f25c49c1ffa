"""Small drops and cheap models to plan for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.model_cost import ModelShape, PassTime, ServingCost
from uara.control.plan.tasks import Tasks, draw_tasks


@pytest.fixture
def small() -> Callable[..., HetEdgeConfig]:
    """Make a config of nine tasks with short answers, in memory for about four of them."""

    def make(**given: Any) -> HetEdgeConfig:
        options = {"users": 9, "output_tokens_max": 40, "memory_bytes": 1.95e9, "search": "prefix"}
        return HetEdgeConfig(**(options | given))

    return make


@pytest.fixture
def drops() -> Callable[..., Tasks]:
    """Draw drops of a config."""

    def draw(config: HetEdgeConfig, number: int = 3) -> Tasks:
        return draw_tasks(config, number)

    return draw


@pytest.fixture
def random_cost() -> Callable[[np.random.Generator], ServingCost]:
    """Draw models and machines whose stages are of one order of magnitude."""

    def draw(rng: np.random.Generator) -> ServingCost:
        return ServingCost(
            draft=ModelShape(2, 64, 128),
            verify=ModelShape(4, 128, 256),
            draft_pass=PassTime(10 ** rng.uniform(-10, -8.5), 10 ** rng.uniform(-3.5, -2)),
            verify_pass=PassTime(10 ** rng.uniform(-10.5, -9.5), 10 ** rng.uniform(-2.5, -1)),
            acceptance=float(rng.uniform(0.5, 0.9)),
            output_tokens=16,
        )

    return draw
