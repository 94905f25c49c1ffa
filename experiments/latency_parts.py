"""Where the time of requests goes, and how busy servers and bands are, under one controller.

Shape legend: N episodes, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.config import TaskConfig
from experiments.evaluation import episode_keys, make_world
from uara.network import Controller, Decision, NetworkState
from uara.prediction import Physics, Prediction, predict
from uara.radio.bank import ChannelBank, Split
from uara.serving.batching import sum_by_server

PARTS = ("queue", "upload", "prefill", "draft", "uplink", "wait", "verify", "downlink", "path")


@dataclass(frozen=True)
class TimeUse:
    """Where request-seconds go in the slots before the horizon, and what servers and bands do."""

    share: dict[str, float]  # of all seconds that requests wait or are served; adds up to 1
    server_load: NDArray[np.float64]  # (N, E) offered prefill and token work over time
    band_load: NDArray[np.float64]  # (N, E) share of the uplink's band and time that is in use


def measure_time_use(
    controller: Controller,
    task: TaskConfig,
    bank: ChannelBank,
    *,
    split: Split,
    episodes: int,
) -> TimeUse:
    """Play episodes up to the horizon and split the time of every request into its parts.

    Args:
        controller: whatever decides.
        task: the scenario.
        bank: its bank.
        split: worlds to play.
        episodes: N.
    """
    world, physics = make_world(task, bank, episodes), Physics.of(task.physics)
    everyone = torch.ones(episodes, dtype=torch.bool)
    worlds = torch.from_numpy(bank.worlds(split))
    keys = episode_keys(task.evaluation.seed, episodes)
    world.reset(everyone, worlds[torch.arange(episodes) % len(worlds)], keys)
    controller.reset(everyone, torch.Generator().manual_seed(task.evaluation.seed))
    seconds = dict.fromkeys(PARTS, 0.0)
    work = torch.zeros(episodes, len(task.world.servers))
    band = torch.zeros_like(work)
    for _ in range(task.world.horizon_slots):
        state = world.state()
        decision = controller.decide(state)
        truth = world.state(true=True)
        plan = predict(truth, decision, physics)
        served = _served_s(truth, decision.server, plan, task.world.slot_s)
        for part, spent in served.items():
            seconds[part] += float(spent.sum())
        band += _airtime(truth, decision, served["upload"] + served["uplink"])
        work += world.offered_work_s(decision)
        outcome = world.step(decision)
        controller.observe(outcome)
        seconds["queue"] += float(outcome.alive_s.sum()) - sum(
            float(spent.sum()) for spent in served.values()
        )
    # A request that finishes inside a slot is served for less of it than was planned.
    seconds["queue"] = max(0.0, seconds["queue"])
    total = sum(seconds.values())
    span_s = task.world.horizon_slots * task.world.slot_s
    return TimeUse(
        share={part: spent / total if total else 0.0 for part, spent in seconds.items()},
        server_load=(work / span_s).double().numpy(),
        band_load=(band / span_s).double().numpy(),
    )


def _served_s(
    state: NetworkState, server: Tensor, plan: Prediction, slot_s: float
) -> dict[str, Tensor]:
    """Split the slot of each device with a request into parts, (N, M) seconds each."""
    active = state.has_request.float()
    upload = plan.upload_s.clamp(max=slot_s) * active
    left = slot_s * active - upload
    prefill = torch.minimum(plan.prefill_s, left)
    left = left - prefill
    left = torch.minimum(left, state.expected_remaining_tokens * plan.tpot_s)
    parts = {
        "draft": plan.draft_s,
        "uplink": plan.draft_uplink_s,
        "wait": plan.wait_s,
        "verify": plan.verify_s,
        "downlink": plan.downlink_s,
        "path": state.rtt_s.gather(1, server) * (plan.draft_bits > 0),
    }
    # Where stages overlap, a round is shorter than their sum: each keeps its proportion.
    scale = left / torch.stack(list(parts.values())).sum(0).clamp_min(1e-9)
    return {"upload": upload, "prefill": prefill} | {k: v * scale for k, v in parts.items()}


def _airtime(state: NetworkState, decision: Decision, sending_s: Tensor) -> Tensor:
    """Compute the band-seconds in use over the band, (N, E)."""
    band = state.uplink_bandwidth_hz.gather(1, decision.server)
    share = sending_s * decision.bandwidth_hz / band
    return sum_by_server(share, decision.server, state.num_servers)
