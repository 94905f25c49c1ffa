"""The decision process: observations, actions, rewards, and the views that other libraries use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from envs.action import Action, ControlConfig
from envs.batched import BatchedEnv, EnvRecipe, RewardConfig, Step
from envs.observation import Observation, ObservationConfig, ObservationSchema, observe, schema

if TYPE_CHECKING:
    from envs.parallel import NetworkParallelEnv, parallel_env
    from envs.single import NetworkEnv
    from envs.vector import NetworkVecEnv

_VIEWS = {
    "NetworkEnv": "envs.single",
    "NetworkParallelEnv": "envs.parallel",
    "NetworkVecEnv": "envs.vector",
    "parallel_env": "envs.parallel",
}

__all__ = [
    "Action",
    "BatchedEnv",
    "ControlConfig",
    "EnvRecipe",
    "NetworkEnv",
    "NetworkParallelEnv",
    "NetworkVecEnv",
    "Observation",
    "ObservationConfig",
    "ObservationSchema",
    "RewardConfig",
    "Step",
    "observe",
    "parallel_env",
    "schema",
]


def __getattr__(name: str) -> Any:
    # Training needs none of the libraries that the views are for.
    if name in _VIEWS:
        return getattr(importlib.import_module(_VIEWS[name]), name)
    raise AttributeError(f"module 'envs' has no attribute '{name}'")
