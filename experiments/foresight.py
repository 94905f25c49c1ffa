"""What foresight is worth: look-ahead over a controller, with sampled and with true futures.

Shape legend: N episodes, played at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.config import TaskConfig
from experiments.evaluation import episode_keys, make_world
from experiments.statistics import Interval, paired_difference
from uara.control.allocation import Allocator
from uara.control.lookahead import LookAhead, LookAheadConfig
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Controller
from uara.prediction import Physics
from uara.radio.bank import ChannelBank, Progress, Split
from uara.world.rollouts import WorldSimulator
from uara.world.world import World

LEAST_WORTH_PERCENT = 5.0  # below it a scenario is not called sequential


@dataclass(frozen=True)
class Foresight:
    """How much shorter look-ahead makes the mean E2E latency, in per cent of the base's."""

    base: str
    weak_base: str
    sampled: Interval  # over the base, with futures as they may be
    true: Interval  # over the base, with the future that comes: a bound
    control: Interval  # over the weak base, with sampled futures: the positive control

    @property
    def control_passes(self) -> bool:
        """Tell whether the tool finds what there certainly is to find."""
        return self.control.low > 0

    @property
    def is_sequential(self) -> bool:
        """Tell whether foresight without hindsight is worth enough here."""
        return self.control_passes and self.sampled.low >= LEAST_WORTH_PERCENT

    def words(self) -> str:
        """Say it in one line."""
        passes = "passed" if self.control_passes else "FAILED"
        return (
            f"foresight over {self.base} is worth {_percent(self.sampled)}, with the true future "
            f"{_percent(self.true)} (positive control {passes}: {_percent(self.control)} over "
            f"{self.weak_base})"
        )

    def as_json(self) -> dict[str, object]:
        """Return the figures for a results file."""
        return {
            "base": self.base,
            "weak_base": self.weak_base,
            "sampled_percent": self.sampled.as_json(),
            "true_percent": self.true.as_json(),
            "control_percent": self.control.as_json(),
            "control_passes": self.control_passes,
            "is_sequential": self.is_sequential,
        }


def _percent(interval: Interval) -> str:
    return f"{interval.mean:.1f} % [{interval.low:.1f}, {interval.high:.1f}]"


def measure_foresight(
    task: TaskConfig,
    bank: ChannelBank,
    *,
    split: Split = "tuning",
    episodes: int = 32,
    base: str = "greedy_latency",
    weak_base: str = "max_compute",
    config: LookAheadConfig | None = None,
    progress: Progress | None = None,
) -> Foresight:
    """Compare look-ahead with its base on the same episodes.

    Args:
        task: the scenario.
        bank: its bank.
        split: worlds to play.
        episodes: N.
        base: rule that foresight is asked for.
        weak_base: rule that look-ahead must improve clearly, or the tool is broken.
        config: of the look-ahead.
        progress: called with (slots played, most slots).

    Raises:
        UserError: if the bank has no world of the split.
    """
    if len(bank.worlds(split)) == 0:
        raise UserError(f"the bank has no {split} worlds; set bank.{split} above 0 and rebuild")
    limit = task.world.horizon_slots + task.world.drain_slots
    done = 0

    def report(slot: int) -> None:
        if progress is not None:
            progress(done * limit + slot, 5 * limit)

    rows = {}
    for name, true_future in (
        (base, None), (base, False), (base, True), (weak_base, None), (weak_base, False)
    ):  # fmt: skip
        rows[name, true_future] = play_with_foresight(
            task, bank, name, true_future,
            split=split, episodes=episodes, config=config, report=report,
        )  # fmt: skip
        done += 1
    labels = bank.worlds(split)[np.arange(episodes) % len(bank.worlds(split))]

    def saved(name: str, true_future: bool) -> Interval:
        plain, better = rows[name, None], rows[name, true_future]
        known = np.isfinite(plain) & np.isfinite(better)
        scale = 100 / float(plain[known].mean())
        return paired_difference(plain[known] * scale, better[known] * scale, labels[known])

    return Foresight(
        base, weak_base, saved(base, False), saved(base, True), saved(weak_base, False)
    )


def play_with_foresight(
    task: TaskConfig,
    bank: ChannelBank,
    rule: str,
    true_future: bool | None,
    *,
    split: Split,
    episodes: int,
    config: LookAheadConfig | None = None,
    report: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Play a rule with or without look-ahead until every request is done, (N,) mean E2E seconds.

    Args:
        task: the scenario.
        bank: its bank.
        rule: the base.
        true_future: which futures are looked at; None: no look-ahead.
        split: worlds to play.
        episodes: N.
        config: of the look-ahead.
        report: called with each slot's number.
    """

    def make(num_networks: int) -> World:
        made = make_world(task, bank, num_networks)
        # Without a compiler the torch form does the same, more slowly.
        with suppress(UserError):
            made.compile()
        return made

    world, physics = make(episodes), Physics.of(task.physics)
    base: Controller = RuleController(rule, task.allocation, physics)
    controller = base
    if true_future is not None:
        player = RuleController(rule, task.allocation, physics)
        simulator, allocator = WorldSimulator(world, make), Allocator(task.allocation, physics)
        controller = LookAhead(base, player, allocator, simulator, config, true_future=true_future)
    everyone = torch.ones(episodes, dtype=torch.bool)
    worlds = torch.from_numpy(bank.worlds(split))
    keys = episode_keys(task.evaluation.seed, episodes)
    world.reset(everyone, worlds[torch.arange(episodes) % len(worlds)], keys)
    controller.reset(everyone, torch.Generator().manual_seed(task.evaluation.seed))
    total_s = torch.zeros(episodes, dtype=torch.float64)
    for slot in range(task.world.horizon_slots + task.world.drain_slots):
        outcome = world.step(controller.decide(world.state()))
        controller.observe(outcome)
        total_s += outcome.alive_s
        if report is not None:
            report(slot + 1)
        if bool(outcome.drained.all()):
            break
    return (total_s / world.progress.arrived.double().sum(1)).numpy()
