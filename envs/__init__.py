"""The decision process: observations, actions, rewards, and the views that other libraries use."""

from __future__ import annotations

from envs.action import Action, ControlConfig
from envs.batched import BatchedEnv, EnvRecipe, RewardConfig, Step
from envs.observation import Observation, ObservationConfig, ObservationSchema, observe, schema

__all__ = [
    "Action",
    "BatchedEnv",
    "ControlConfig",
    "EnvRecipe",
    "Observation",
    "ObservationConfig",
    "ObservationSchema",
    "RewardConfig",
    "Step",
    "observe",
    "schema",
]
