"""A small network with a bank of random gains; three servers, five devices, ten-second episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from envs.batched import EnvRecipe
from uara.prediction import Physics, PhysicsConfig
from uara.radio.bank import BankConfig, ChannelBank
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.world.config import WorldConfig
from uara.world.requests import RequestConfig
from uara.world.world import World

DEVICES, SERVERS, SLOTS = 5, 3, 20
TASKS = ("chat", "summarise", "code", "photo")

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bank() -> ChannelBank:
    config = BankConfig(
        num_devices=DEVICES, num_slots=SLOTS, train=3, tuning=0, validation=1, evaluation=1
    )
    rng = np.random.default_rng(0)
    shape = (config.num_worlds, SLOTS, DEVICES)
    # Spread so that some servers are out of reach of some devices.
    mean_db = rng.uniform(-145, -90, (config.num_worlds, 1, DEVICES, SERVERS))
    return ChannelBank(
        gain_db=(mean_db + rng.normal(0, 2, (*shape, SERVERS))).astype(np.float16),
        position_m=rng.uniform(-200, 200, (*shape, 2)).astype(np.float32),
        velocity_m_s=np.zeros((*shape, 2), np.float32),
        is_los=np.zeros((*shape, SERVERS), np.bool_),
        site_position_m=np.array([[0, 0], [300, 0], [150, 260]], np.float32),
        config=config,
        sionna_version="none",
        build_s=0.0,
    )


def make_worlds(bank: ChannelBank, arrivals_per_s: float) -> Callable[[int], World]:
    requests = RequestConfig(arrivals_per_s=arrivals_per_s)
    config = WorldConfig(
        horizon_slots=SLOTS, drain_slots=400, reach_gain_db=-125.0, requests=requests
    )
    physics = Physics.of(PhysicsConfig())
    rates = {task: TaskAcceptance(mean=0.7, std=0.1) for task in TASKS}
    acceptance = AcceptanceTable("made up", 0.7, {physics.codec.rule: rates})
    return lambda num: World(config, physics, bank, acceptance, num)


@pytest.fixture(scope="session")
def recipe(bank: ChannelBank) -> EnvRecipe:
    return EnvRecipe(make_worlds(bank, arrivals_per_s=0.2))


@pytest.fixture(scope="session")
def deserted(bank: ChannelBank) -> EnvRecipe:
    """A recipe of networks in which next to no request ever arrives."""
    return EnvRecipe(make_worlds(bank, arrivals_per_s=1e-6))
