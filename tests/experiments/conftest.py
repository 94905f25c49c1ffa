"""A tiny task with a bank of made-up gains, in a folder of its own; no test here runs Sionna."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

from experiments.config import TaskConfig, load_task
from uara.radio.bank import BankConfig, ChannelBank, bank_path

SLOTS = 16


def _lengths(low: int, mean: int, high: int, of: Literal["prompt", "output"]) -> dict[str, int]:
    return {f"{of}_tokens_min": low, f"{of}_tokens_mean": mean, f"{of}_tokens_max": high}


TASK: dict[str, Any] = {
    "name": "tiny",
    "bank": {
        "num_devices": 3, "num_servers": 2, "num_slots": SLOTS,
        "train": 2, "tuning": 1, "validation": 1, "evaluation": 3,
    },
    "world": {
        "servers": ["4xA100-40GB", "4xA40"], "horizon_slots": SLOTS,
        "requests": {"arrivals_per_s": 0.2, "tasks": [
            {"name": "chat", "weight": 2,
             **_lengths(200, 300, 400, "prompt"), **_lengths(8, 16, 32, "output")},
            {"name": "code", "weight": 1,
             **_lengths(400, 600, 900, "prompt"), **_lengths(8, 12, 20, "output")},
        ]},
    },
    "evaluation": {"episodes": 6, "controllers": ["max_sinr", "greedy_latency"]},
    "decode": {"requests": 4, "output_tokens": 8, "controllers": ["least_loaded"]},
}  # fmt: skip
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "task": "task.yaml",
    "num_networks": 2,
    "learner": {"kind": "mappo", "rollout_slots": 8, "epochs": 1, "num_minibatches": 1},
    "training": {"env_steps": 48, "validate_every": 2, "checkpoint_every": 1},
}

torch.set_num_threads(1)


def make_bank(config: BankConfig, sionna_version: str = "none") -> ChannelBank:
    """Make a bank of gains that differ between servers and change a little over time."""
    rng = np.random.default_rng(3)
    shape = (config.num_worlds, config.num_slots, config.num_devices)
    mean_db = rng.uniform(-100, -75, (config.num_worlds, 1, config.num_devices, config.num_servers))
    return ChannelBank(
        gain_db=(mean_db + rng.normal(0, 2, (*shape, config.num_servers))).astype(np.float16),
        position_m=rng.uniform(-200, 200, (*shape, 2)).astype(np.float32),
        velocity_m_s=np.zeros((*shape, 2), np.float32),
        is_los=np.zeros((*shape, config.num_servers), np.bool_),
        site_position_m=rng.uniform(-200, 200, (config.num_servers, 2)).astype(np.float32),
        config=config,
        sionna_version=sionna_version,
        build_s=0.0,
    )


@pytest.fixture
def made_bank() -> Callable[[BankConfig], ChannelBank]:
    """Make the bank of any config, of made-up gains."""
    return make_bank


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder with `task.yaml`, `experiment.yaml` and the task's bank in `banks/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    config = BankConfig(**TASK["bank"])
    make_bank(config).save(bank_path(config, "banks"))
    return tmp_path


@pytest.fixture
def task(project: Path) -> TaskConfig:
    """The tiny task."""
    return load_task(project / "task.yaml")


@pytest.fixture
def bank(task: TaskConfig) -> ChannelBank:
    """Its bank."""
    return make_bank(task.bank)


@pytest.fixture
def uara(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in the folder of the project: exit status, stdout, stderr."""
    from experiments import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uara", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return status, out, err

    return run
