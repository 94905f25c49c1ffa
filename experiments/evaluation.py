"""Plays controllers on the frozen episodes of a task: per-episode rows, and tables from them.

Shape legend: N episodes, B networks played at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.config import TaskConfig
from experiments.request_metrics import DETAILS, RequestLog, tpot_s
from experiments.statistics import Interval, mean_interval, paired_difference
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState
from uara.prediction import Physics
from uara.radio.bank import ChannelBank, Split, build_or_load
from uara.serving.acceptance import load_acceptance
from uara.world.streams import uniform
from uara.world.world import World

BANKS = Path("banks")
METRICS = {
    "e2e_latency_s": "s",
    "ttft_s": "s",
    "tpot_s": "s",
    "device_energy_j": "J per request",
    "uplink_kbit_per_token": "kbit",
    "handovers": "per request",
    "capped_requests": "share",
}
View = Callable[[NetworkState], NetworkState]


@dataclass(frozen=True)
class EpisodeRows:
    """Results of one controller, one row per episode."""

    controller: str
    observes: str
    world: NDArray[np.int64]  # (N,) cluster label
    metrics: dict[str, NDArray[np.float64]]  # (N,) each, by the names of METRICS and DETAILS
    decide_s: float  # processor time of one decision for one network
    capped: bool  # some request was not finished when the drain ended
    seed: NDArray[np.int64] | None = None  # (N,) of training, where several runs are pooled

    def interval(self, metric: str) -> Interval:
        """Compute mean and interval of a metric; episodes without a request are left out."""
        values = self.metrics[metric]
        known = np.isfinite(values)
        seed = None if self.seed is None else self.seed[known]
        return mean_interval(values[known], self.world[known], seed)


@dataclass(frozen=True)
class _Look:
    """What a controller is shown of a world."""

    view: View | None
    true_acceptance: bool

    def __call__(self, world: World) -> NetworkState:
        state = world.state()
        if self.true_acceptance:
            state = state.with_(acceptance=world.state(true=True).acceptance)
        return state if self.view is None else self.view(state)


def make_world(task: TaskConfig, bank: ChannelBank, num_networks: int) -> World:
    """Make the world of a task."""
    acceptance = load_acceptance(task.acceptance_path)
    return World(task.world, Physics.of(task.physics), bank, acceptance, num_networks)


def load_bank(
    task: TaskConfig,
    folder: Path = BANKS,
    progress: Callable[[int, int], None] | None = None,
) -> ChannelBank:
    """Load the bank of a task, building it with Sionna where it is missing."""
    return build_or_load(task.bank, folder, progress=progress)


def episode_keys(seed: int, episodes: int) -> torch.Tensor:
    """Make the request keys of frozen episodes, (N,) int64."""
    return (uniform(seed, torch.arange(episodes)) * 2.0**62).to(torch.int64)


def evaluate_controller(
    controller: Controller,
    task: TaskConfig,
    bank: ChannelBank,
    *,
    split: Split = "evaluation",
    episodes: int | None = None,
    seed: int | None = None,
    batch: int = 64,
    view: View | None = None,
    true_acceptance: bool = False,
) -> EpisodeRows:
    """Play a controller on frozen episodes until every request is done.

    Args:
        controller: whatever decides.
        task: the task.
        bank: its bank.
        split: worlds to play; "evaluation" for tables.
        episodes: N; the task's number by default.
        seed: key of the requests; the task's by default.
        batch: networks played at once.
        view: changes what the controller sees, e.g. equal gains (for `uara diagnose`).
        true_acceptance: show it each request's own acceptance in place of the running estimate.

    Raises:
        UserError: if the bank has no world of the split.
    """
    episodes = task.evaluation.episodes if episodes is None else episodes
    keys = episode_keys(task.evaluation.seed if seed is None else seed, episodes)
    available = bank.worlds(split)
    if len(available) == 0:
        raise UserError(f"the bank has no {split} worlds; set bank.{split} above 0 and rebuild")
    worlds = torch.from_numpy(available[np.arange(episodes) % len(available)])
    look = _Look(view, true_acceptance)
    parts, spent, slots, capped = [], 0.0, 0, False
    for start in range(0, episodes, batch):
        rows = slice(start, min(start + batch, episodes))
        generator = torch.Generator().manual_seed(task.evaluation.seed + start)
        part, seconds, steps, cut = _play(
            controller, task, bank, worlds[rows], keys[rows], generator, look
        )
        parts.append(part)
        spent, slots, capped = spent + seconds, slots + steps * len(worlds[rows]), capped or cut
    return EpisodeRows(
        controller=controller.name,
        observes=controller.observes,
        world=worlds.numpy(),
        metrics={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        decide_s=spent / slots,
        capped=capped,
    )


def _play(
    controller: Controller,
    task: TaskConfig,
    bank: ChannelBank,
    worlds: torch.Tensor,
    keys: torch.Tensor,
    generator: torch.Generator,
    look: _Look,
) -> tuple[dict[str, NDArray[np.float64]], float, int, bool]:
    """Play one batch of episodes to the end of its drain."""
    world = make_world(task, bank, len(keys))
    everyone = torch.ones(len(keys), dtype=torch.bool)
    world.reset(everyone, worlds, keys)
    controller.reset(everyone, generator)
    totals: dict[str, torch.Tensor] = {}
    log = RequestLog()
    spent = 0.0
    limit = task.world.horizon_slots + task.world.drain_slots
    slot = 0
    while slot < limit:
        slot += 1
        state = look(world)
        begin = time.process_time()
        decision: Decision = controller.decide(state)
        spent += time.process_time() - begin
        outcome = world.step(decision)
        controller.observe(outcome)
        log.add(outcome)
        amounts = {
            "alive_s": outcome.alive_s,
            "finished": outcome.finished.sum(1),
            "ttft_s": outcome.ttft_s.sum(1),
            "tpot_s": tpot_s(outcome).sum(1),
            "tokens": outcome.tokens.sum(1),
            "device_energy_j": outcome.device_energy_j.sum(1),
            "uplink_bits": outcome.uplink_bits.sum(1),
            "handovers": outcome.handover.sum(1),
        }
        for name, amount in amounts.items():
            totals[name] = totals.get(name, 0.0) + amount.double()
        if bool(outcome.drained.all()):
            break
    arrived = world.progress.arrived.double().sum(1)
    done = totals["finished"]
    horizon_s = task.world.horizon_slots * task.world.slot_s
    details = log.metrics(arrived, horizon_s, task.evaluation.deadline_s)
    cut = arrived - done - torch.from_numpy(details["failed_requests"]).nan_to_num() * arrived
    metrics = {
        # Little's law: requests that the cap cuts off count with the time until the cap.
        "e2e_latency_s": totals["alive_s"] / arrived,
        "ttft_s": totals["ttft_s"] / done,
        "tpot_s": totals["tpot_s"] / done,
        "device_energy_j": totals["device_energy_j"] / arrived,
        "uplink_kbit_per_token": totals["uplink_bits"] / totals["tokens"] / 1e3,
        "handovers": totals["handovers"] / arrived,
        "capped_requests": cut / arrived,
    }
    numbers = {name: value.numpy() for name, value in metrics.items()}
    return numbers | details, spent, slot, bool((cut > 0.5).any())


def evaluation_row(rows: EpisodeRows, reference: EpisodeRows | None = None) -> dict[str, object]:
    """Make the JSON row of a controller; with a reference also the paired difference to it."""
    row: dict[str, object] = {"controller": rows.controller, "observes": rows.observes}
    names = [metric for metric in (*METRICS, *DETAILS) if metric in rows.metrics]
    row |= {metric: rows.interval(metric).as_json() for metric in names}
    row["decide_us"] = rows.decide_s * 1e6
    row["episodes"] = len(rows.world)
    if reference is not None:
        row["reference"] = reference.controller
        row["e2e_minus_reference_s"] = difference(rows, reference).as_json()
    return row


def difference(rows: EpisodeRows, reference: EpisodeRows) -> Interval:
    """Compute the paired difference of E2E latency, rows minus reference, in seconds."""
    a, b = rows.metrics["e2e_latency_s"], reference.metrics["e2e_latency_s"]
    known = np.isfinite(a) & np.isfinite(b)
    seed = None if rows.seed is None else rows.seed[known]
    return paired_difference(a[known], b[known], rows.world[known], seed)
