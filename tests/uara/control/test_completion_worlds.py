"""What knowledge is worth over time: the controller without it must be clearly worse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig
from uara.control.completion import CompletionConfig, CompletionGreedy
from uara.prediction import Physics
from uara.world.config import BelievedConfig
from uara.world.conversations import ConversationConfig
from uara.world.requests import RequestConfig, TaskType
from uara.world.world import World

SLOTS, DEVICES, SERVERS, NETWORKS = 120, 6, 3, 12


def moving_gains_db() -> Tensor:
    """Let devices walk around between three servers; gains swing by 30 dB in a minute."""
    time = torch.arange(SLOTS)[:, None, None] / 2
    phase = torch.arange(DEVICES)[:, None] / DEVICES + torch.arange(SERVERS) / SERVERS
    return -95 + 15 * torch.sin(2 * math.pi * (time / 60 + phase))


def total_time_s(world: World, physics: Physics, **options: object) -> Tensor:
    """Play until all requests have ended, or long after the last came; sum up their time, (B,)."""
    config = CompletionConfig(**options)  # type: ignore[arg-type]
    controller = CompletionGreedy(AllocationConfig(), physics, config)
    everyone = torch.ones(NETWORKS, dtype=torch.bool)
    world.reset(everyone, torch.zeros(NETWORKS, dtype=torch.long), torch.arange(NETWORKS) + 7)
    controller.reset(everyone, torch.Generator())
    total_s = torch.zeros(NETWORKS, dtype=torch.double)
    for _ in range(3 * SLOTS):
        outcome = world.step(controller.decide(world.state()))
        controller.observe(outcome)
        total_s += outcome.alive_s.double()
        if bool(outcome.drained.all()):
            break
    return total_s


def clearly_longer(longer_s: Tensor, shorter_s: Tensor, share: float) -> bool:
    """Tell whether a paired difference exceeds a share by two standard errors."""
    excess_s = longer_s - (1 + share) * shorter_s
    return bool(excess_s.mean() > 2 * excess_s.std() / math.sqrt(len(excess_s)))


@pytest.mark.slow
def test_blindness_to_caches_and_handovers_costs_time_in_conversations_on_the_move(
    make_world: Callable[..., World],
    one_task: Callable[[int, int], TaskType],
    physics: Physics,
) -> None:
    document = one_task(3000, 96)
    world = make_world(
        moving_gains_db(), num=NETWORKS, tasks=[document], bandwidth_hz=4e6,
        servers=("4xRTX6000Ada", "4xA40", "4xA40"),
        requests=RequestConfig(
            arrivals_per_s=0.03, tasks=(document,),
            conversations=ConversationConfig(continues=0.85, max_context_tokens=16_000),
        ),
    )  # fmt: skip
    fair_s = total_time_s(world, physics, switching_margin_s=2)
    blind_s = total_time_s(world, physics, switching_margin_s=2, count_kv=False)
    assert clearly_longer(blind_s, fair_s, 0.0)
    restless_s = total_time_s(world, physics, switching_margin_s=0, count_handover=False)
    assert clearly_longer(restless_s, fair_s, 0.1)


@pytest.mark.slow
def test_estimates_beat_what_is_wrongly_believed(
    make_world: Callable[..., World],
    one_task: Callable[[int, int], TaskType],
    physics: Physics,
) -> None:
    task = one_task(2000, 96)
    common = {
        "num": NETWORKS, "tasks": [task], "bandwidth_hz": 2e6,
        "servers": ("4xRTX6000Ada", "4xA40", "4xA40"),
    }  # fmt: skip
    drifting = RequestConfig(arrivals_per_s=0.05, tasks=(task,), acceptance_drift=0.4)
    hidden = make_world(
        moving_gains_db(), **common, requests=drifting, acceptance_prior_tokens=1e6,
        acceptance_mean=0.6,
    )  # fmt: skip
    trusting_s = total_time_s(hidden, physics)
    estimating_s = total_time_s(hidden, physics, acceptance={})
    assert clearly_longer(trusting_s, estimating_s, 0.01)
    wrong = make_world(
        moving_gains_db(), **common, arrivals_per_s=0.05,
        believed=BelievedConfig(forward_factor=(1.4, 0.7, 0.7)),
    )  # fmt: skip
    trusting_s = total_time_s(wrong, physics)
    estimating_s = total_time_s(wrong, physics, profile={})
    assert clearly_longer(trusting_s, estimating_s, 0.02)
