"""The second stable-baselines3 baseline: SAC on a flat box of actions, one per network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from agents.sb3 import Sb3Learner
from envs.batched import BatchedEnv
from envs.observation import View

_LOGGED = {
    "train/actor_loss": "train/policy_loss",
    "train/critic_loss": "train/value_loss",
    "train/ent_coef": "train/temperature",
    "train/learning_rate": "train/learning_rate",
}


class Sb3SacConfig(BaseModel):
    """SAC of stable-baselines3 with its own defaults where none is named here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sb3_sac"] = Field("sb3_sac", description="names the learner")
    rollout_slots: int = Field(8, gt=0, description="slots between updates")
    gradient_steps: int = Field(8, gt=0, description="per rollout")
    batch_size: int = Field(256, gt=1, description="network slots per gradient step")
    warmup: int = Field(4096, ge=0, description="network slots of uniform actions, no learning")
    capacity: int = Field(100_000, gt=0, description="network slots remembered")
    learning_rate: float = Field(3e-4, gt=0, description="of Adam")
    discount: float = Field(0.98, gt=0, le=1, description="gamma, per slot")
    polyak: float = Field(0.005, gt=0, le=1, description="share that targets take per step")
    hidden: int = Field(256, gt=0, description="width of both layers of actor and critics")


class Sb3SacLearner(Sb3Learner):
    """SAC of stable-baselines3."""

    def __init__(
        self,
        config: Sb3SacConfig,
        env: BatchedEnv,
        view: View,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the model; the environment is not stepped.

        Args:
            config: every switch.
            env: B networks; the learner is its only user.
            view: of no meaning here, one controller sees the whole network.
            seed: of weights and draws.
            device: where the model lives.
        """
        from stable_baselines3 import SAC

        from envs.vector import NetworkVecEnv

        vector = NetworkVecEnv(env, style="box")
        model = SAC(
            "MlpPolicy",
            vector,
            train_freq=(config.rollout_slots, "step"),
            gradient_steps=config.gradient_steps,
            batch_size=config.batch_size,
            learning_starts=config.warmup,
            buffer_size=config.capacity,
            learning_rate=config.learning_rate,
            gamma=config.discount,
            tau=config.polyak,
            policy_kwargs={"net_arch": [config.hidden, config.hidden]},
            seed=seed,
            device=device,
        )
        super().__init__(config.kind, env, vector, model, config.rollout_slots)
        self.config = config

    def start(self) -> None:
        """Begin the first episodes."""
        super().start()
        # It reckons which share of the training is left, which constant rates do not ask for.
        self.model._total_timesteps = 1

    def collect(self) -> dict[str, float]:
        """Play slots and return metrics rollout/..."""
        buffer = self.model.replay_buffer
        begin = buffer.pos
        self.model.collect_rollouts(
            self.vector,
            train_freq=self.model.train_freq,
            callback=self._callback,
            learning_starts=self.config.warmup,
            replay_buffer=buffer,
            log_interval=None,
        )
        rows = [(begin + slot) % buffer.buffer_size for slot in range(self.slots)]
        return self.rollout_metrics(float(buffer.rewards[rows].mean()))

    def update(self, progress: float) -> dict[str, float]:
        """Learn from the buffer and return metrics train/...; none during the warm-up."""
        if self.env_steps < self.config.warmup:
            return {}
        self.model.train(self.config.gradient_steps, self.config.batch_size)
        return self.logged(_LOGGED)
