"""What all tests share: one thread, repeatable properties, and small networks to ask about."""

from __future__ import annotations

import os

# Before torch is imported: OpenMP reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import ArrayLike
from torch import Tensor

from uara.network import NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig
from uara.radio.bank import BankConfig, ChannelBank
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.serving.hardware import RACKS
from uara.world.config import WorldConfig
from uara.world.requests import RequestConfig, TaskType
from uara.world.world import World

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Fields of a state with one row per device; of `gain` and `reachable` it is the second axis too.
DEVICE_FIELDS = (
    *("gain", "reachable", "phase", "task", "age_s", "waiting_requests", "prompt_tokens"),
    *("upload_bits", "tokens_so_far", "expected_remaining_tokens", "acceptance", "server"),
    *("kv_tokens", "draft_time_s", "draft_power_w", "power_max_w", "position_m"),
)


@pytest.fixture(scope="session")
def physics() -> Physics:
    return Physics.of(PhysicsConfig())


def _draw_state(num: int, devices: int, servers: int, seed: int, *, fresh: bool) -> NetworkState:
    """Draw networks whose fields agree with each other; `fresh`: all requests just arrived."""
    draw = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=draw)

    each, at = (num, devices), (num, servers)
    gain = 10 ** between(-13.0, -8.5, num, devices, servers)
    reachable = torch.rand(gain.shape, generator=draw) < 0.7
    reachable |= gain >= gain.amax(-1, keepdim=True)
    phase = torch.randint(len(Phase), each, generator=draw)
    phase = torch.full_like(phase, int(Phase.UPLOADING)) if fresh else phase
    active, sent = phase != Phase.IDLE, phase >= Phase.PREFILLING
    started = active & (sent | (torch.rand(each, generator=draw) < 0.5))
    started = torch.zeros_like(active) if fresh else started
    decoding = phase == Phase.DECODING
    prompt = between(200, 4000, *each).round() * active
    tokens = between(1, 200, *each).round() * decoding
    share = between(0, 0.9, *each).where(phase == Phase.PREFILLING, decoding.float())
    rack = [
        RACKS[name] for name in list(RACKS)[:servers] + ["4xA40"] * max(0, servers - len(RACKS))
    ]
    rows = {
        "forward_fixed_s": [r.forward.fixed_s for r in rack],
        "forward_per_row_s": [r.forward.per_row_s for r in rack],
        "forward_per_token_s": [r.forward.per_token_s for r in rack],
        "forward_per_context_s": [r.forward.per_context_s for r in rack],
        "server_power_w": [r.power_w for r in rack],
        "kv_free_tokens": [float(r.kv_capacity_tokens) for r in rack],
    }
    return NetworkState(
        time_s=torch.zeros(num),
        gain=gain,
        reachable=reachable,
        phase=phase,
        task=torch.zeros(each, dtype=torch.long),
        age_s=between(0, 10, *each) * active,
        waiting_requests=torch.zeros(each),
        prompt_tokens=prompt,
        upload_bits=torch.where(active & ~sent, between(1e4, 8e6, *each), 0.0),
        tokens_so_far=tokens,
        expected_remaining_tokens=between(1, 150, *each),
        acceptance=between(0.3, 0.95, *each),
        server=torch.where(started, torch.randint(servers, each, generator=draw), -1),
        kv_tokens=((prompt + tokens) * share).floor(),
        draft_time_s=between(0.015, 0.035, *each),
        draft_power_w=torch.full(each, 4.0),
        power_max_w=between(0.05, 0.2, *each),
        position_m=between(-200, 200, *each, 2),
        **{name: torch.tensor(values).expand(at).clone() for name, values in rows.items()},
        uplink_bandwidth_hz=between(2e5, 2e6, *at),
        downlink_bandwidth_hz=between(1e6, 5e6, *at),
        downlink_power_w=torch.full(at, 2.0),
        rtt_s=between(0, 0.05, *at),
        foreign_rows=torch.zeros(at),
        foreign_prefill_tokens=torch.zeros(at),
    )


@pytest.fixture(scope="session")
def make_state() -> Callable[..., NetworkState]:
    """Make random networks; named fields are replaced by values that broadcast to their shape."""

    def make(
        num: int = 1,
        devices: int = 1,
        servers: int = 1,
        *,
        seed: int = 0,
        fresh: bool = False,
        **changes: ArrayLike | Tensor,
    ) -> NetworkState:
        state = _draw_state(num, devices, servers, seed, fresh=fresh)
        tensors = {}
        for name, value in changes.items():
            old = getattr(state, name)
            tensors[name] = torch.as_tensor(value).to(old.dtype).expand(old.shape).clone()
        return state.with_(**tensors)

    return make


@pytest.fixture(scope="session")
def relabel() -> Callable[[NetworkState, Tensor], NetworkState]:
    """Give the devices of a state other numbers: device `order[i]` becomes device i."""

    def apply(state: NetworkState, order: Tensor) -> NetworkState:
        return state.with_(**{name: getattr(state, name)[:, order] for name in DEVICE_FIELDS})

    return apply


@pytest.fixture(scope="session")
def make_bank() -> Callable[..., ChannelBank]:
    """Make a bank of one world from gains in dB, (T, M, E)."""

    def make(gain_db: ArrayLike) -> ChannelBank:
        gain = np.asarray(gain_db, np.float16)[None]
        _, slots, devices, servers = gain.shape
        config = BankConfig(
            num_devices=devices,
            num_servers=servers,
            num_slots=slots,
            train=1,
            tuning=0,
            validation=0,
            evaluation=0,
        )
        track = np.zeros((1, slots, devices, 2), np.float32)
        return ChannelBank(
            gain_db=gain,
            position_m=track,
            velocity_m_s=track,
            is_los=np.zeros(gain.shape, np.bool_),
            site_position_m=np.zeros((servers, 2), np.float32),
            config=config,
            sionna_version="none",
            build_s=0.0,
        )

    return make


@pytest.fixture(scope="session")
def one_task() -> Callable[[int, int, float], TaskType]:
    """Make a task whose requests are all alike."""

    def make(prompt_tokens: int, output_tokens: int, attachment_bits: float = 0.0) -> TaskType:
        ends = ("min", "mean", "max")
        return TaskType(
            name="only",
            weight=1.0,
            attachment_bits=attachment_bits,
            **{f"prompt_tokens_{end}": prompt_tokens for end in ends},
            **{f"output_tokens_{end}": output_tokens for end in ends},
        )

    return make


@pytest.fixture(scope="session")
def make_world(physics: Physics, make_bank: Callable[..., ChannelBank]) -> Callable[..., World]:
    """Make a world of constant gains (M, E) in dB, or of gains over time (T, M, E)."""

    def make(
        gain_db: ArrayLike,
        *,
        num: int = 1,
        slots: int = 40,
        tasks: Sequence[TaskType] | None = None,
        arrivals_per_s: float = 0.1,
        acceptance_mean: float = 0.7,
        acceptance_std: float = 0.1,
        physics: Physics = physics,
        **config: object,
    ) -> World:
        gain = np.asarray(gain_db, np.float64)
        gain = gain if gain.ndim == 3 else np.broadcast_to(gain, (slots, *gain.shape))
        requests = RequestConfig(arrivals_per_s=arrivals_per_s)
        if tasks is not None:
            requests = RequestConfig(arrivals_per_s=arrivals_per_s, tasks=tuple(tasks))
        defaults = {
            "servers": tuple(list(RACKS)[: gain.shape[2]]),
            "horizon_slots": gain.shape[0],
            "requests": requests,
        }
        rate = TaskAcceptance(mean=acceptance_mean, std=acceptance_std)
        table = {physics.codec.rule: {task.name: rate for task in requests.tasks}}
        world_config = WorldConfig(**{**defaults, **config})
        acceptance = AcceptanceTable("made up", 0.7, table)
        return World(world_config, physics, make_bank(gain), acceptance, num)

    return make
