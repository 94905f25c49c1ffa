"""Every learner by the `kind` of its config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from agents.bandit import BanditLearner
from agents.mappo import MappoLearner
from agents.masac import MasacConfig, MasacLearner
from agents.on_policy import BanditConfig, IppoConfig, MappoConfig
from agents.sb3 import Sb3PpoConfig, Sb3PpoLearner
from agents.sb3_sac import Sb3SacConfig, Sb3SacLearner
from envs.batched import BatchedEnv
from envs.observation import View
from uara.network import Controller

LearnerConfig = MappoConfig | IppoConfig | BanditConfig | MasacConfig | Sb3PpoConfig | Sb3SacConfig


class Learner(Protocol):
    """What the training loop asks of a learner."""

    policy_suffix: str

    @property
    def env_steps(self) -> int:
        """Network slots played so far."""

    def start(self) -> None:
        """Begin the first episodes."""

    def collect(self) -> dict[str, float]:
        """Play a rollout and return metrics rollout/..."""

    def update(self, progress: float) -> dict[str, float]:
        """Learn from the rollout and return metrics train/...; `progress` is in [0, 1]."""

    def histograms(self) -> dict[str, torch.Tensor]:
        """Return what was chosen last by devices with a request, by head; may be empty."""

    def controller(self) -> Controller:
        """Return the current policy, deterministic."""

    def save_policy(self, path: Path) -> None:
        """Write the current policy to a file with the suffix `policy_suffix`."""

    def policy_content(self) -> dict[str, Any]:
        """Return what makes a checkpoint loadable as a policy; may be empty."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""


@dataclass(frozen=True)
class LearnerKind:
    """How a learner is made, and what its policy files end with."""

    make: Callable[[Any, BatchedEnv, View, int, torch.device], Learner]
    policy_suffix: str


LEARNERS: dict[str, LearnerKind] = {
    "mappo": LearnerKind(MappoLearner, MappoLearner.policy_suffix),
    "ippo": LearnerKind(MappoLearner, MappoLearner.policy_suffix),
    "bandit": LearnerKind(BanditLearner, BanditLearner.policy_suffix),
    "masac": LearnerKind(MasacLearner, MasacLearner.policy_suffix),
    "sb3_ppo": LearnerKind(Sb3PpoLearner, Sb3PpoLearner.policy_suffix),
    "sb3_sac": LearnerKind(Sb3SacLearner, Sb3SacLearner.policy_suffix),
}


def make_learner(
    config: LearnerConfig,
    env: BatchedEnv,
    view: View,
    seed: int,
    device: torch.device | str = "cpu",
) -> Learner:
    """Make the learner that a config names.

    Args:
        config: every switch.
        env: B networks, of which the learner is the only user.
        view: what an actor may read, where the learner has views.
        seed: of weights and draws.
        device: where it learns.
    """
    return LEARNERS[config.kind].make(config, env, view, seed, torch.device(device))


def policy_suffix(config: LearnerConfig) -> str:
    """Tell the file suffix of a learner's policies."""
    return LEARNERS[config.kind].policy_suffix
