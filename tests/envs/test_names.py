"""The public names of the package, and how little it takes to import it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import envs


def test_public_names_do_not_change_silently() -> None:
    assert sorted(envs.__all__) == [
        "Action", "BatchedEnv", "ControlConfig", "EnvRecipe", "NetworkEnv", "NetworkParallelEnv",
        "NetworkVecEnv", "Observation", "ObservationConfig", "ObservationSchema", "RewardConfig",
        "Step", "observe", "parallel_env", "schema",
    ]  # fmt: skip
    assert all(hasattr(envs, name) for name in envs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = envs.nothing


def test_training_imports_neither_views_nor_figures() -> None:
    heavy = ("gymnasium", "pettingzoo", "stable_baselines3", "matplotlib")
    code = f"import sys, envs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
