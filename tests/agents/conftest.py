"""Small worlds with random gains, and observations made of nothing but numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.action import ControlConfig
from envs.batched import BatchedEnv, RewardConfig
from envs.observation import Observation, schema
from uara.prediction import Physics, PhysicsConfig
from uara.radio.bank import BankConfig, ChannelBank
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.world.requests import RequestConfig
from uara.world.world import World, WorldConfig

SLOTS = 16

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def physics() -> Physics:
    return Physics.of(PhysicsConfig())


def _bank(mean_db: NDArray[np.float64]) -> ChannelBank:
    """Make two worlds of constant gains (M, E) with a little noise."""
    devices, servers = mean_db.shape
    config = BankConfig(
        num_devices=devices,
        num_servers=servers,
        num_slots=SLOTS,
        train=1,
        tuning=0,
        validation=0,
        evaluation=1,
    )
    shape = (2, SLOTS, devices)
    noise = np.random.default_rng(1).normal(0, 0.5, (*shape, servers))
    return ChannelBank(
        gain_db=(mean_db + noise).astype(np.float16),
        position_m=np.zeros((*shape, 2), np.float32),
        velocity_m_s=np.zeros((*shape, 2), np.float32),
        is_los=np.zeros((*shape, servers), np.bool_),
        site_position_m=np.zeros((servers, 2), np.float32),
        config=config,
        sionna_version="none",
        build_s=0.0,
    )


@pytest.fixture(scope="session")
def make_env(physics: Physics) -> Callable[..., BatchedEnv]:
    rates = {
        task: TaskAcceptance(mean=0.7, std=0.1) for task in ("chat", "summarise", "code", "photo")
    }
    acceptance = AcceptanceTable("made up", 0.7, {physics.codec.rule: rates})

    def make(
        control: ControlConfig,
        *,
        gain_db: Sequence[Sequence[float]] | None = None,
        num_networks: int = 3,
        arrivals_per_s: float = 0.2,
        reward: RewardConfig | None = None,
    ) -> BatchedEnv:
        mean_db = np.random.default_rng(0).uniform(-115, -85, (4, 3))
        if gain_db is not None:
            mean_db = np.array(gain_db)
        config = WorldConfig(
            servers=("4xA100-40GB",) * mean_db.shape[1],
            horizon_slots=SLOTS,
            requests=RequestConfig(arrivals_per_s=arrivals_per_s),
        )
        world = World(config, physics, _bank(mean_db), acceptance, num_networks)
        return BatchedEnv(world, "train", control, reward or RewardConfig(), seed=5)

    return make


@pytest.fixture(scope="session")
def every_head() -> ControlConfig:
    return ControlConfig(
        association="learned", bandwidth="learned", power="learned", draft_length="learned"
    )


@pytest.fixture(scope="session")
def make_observation() -> Callable[..., Observation]:
    def make(networks: int, devices: int, servers: int, seed: int = 0) -> Observation:
        draw = torch.Generator().manual_seed(seed)
        names = [feature.name for feature in schema().pair]
        pair = torch.randn(networks, devices, servers, len(names), generator=draw)
        serving = torch.randint(servers, (networks, devices), generator=draw)
        pair[..., names.index("is_serving")] = torch.nn.functional.one_hot(serving, servers).float()
        mask = torch.rand(networks, devices, servers, generator=draw) < 0.7
        mask[..., 0] |= ~mask.any(-1)
        active = torch.rand(networks, devices, generator=draw) < 0.6
        active[:, 0] = True
        return Observation(
            device=torch.randn(networks, devices, len(schema().device), generator=draw),
            pair=pair,
            server=torch.randn(networks, servers, len(schema().server), generator=draw),
            mask=mask,
            active=active,
        )

    return make
