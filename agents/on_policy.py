"""Configs of the learners that improve a policy on its own rollouts: MAPPO, IPPO, a bandit.

Defaults and their sources are in docs/mappo.md, what sets the three apart in docs/learners.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.network import NetworkConfig
from uara.control.controllers import ControllersConfig


class EntropyConfig(BaseModel):
    """Weight of each head's entropy; heads have different units, so each has its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: float = Field(0.001, ge=0, description="nats of the server choice")
    bandwidth: float = Field(0.0, ge=0, description="nats of the Beta density of the band weight")
    power: float = Field(0.0, ge=0, description="nats of the Beta density of the power")
    draft_length: float = Field(0.003, ge=0, description="nats of the draft length")


class ImitateConfig(BaseModel):
    """A controller whose choices are copied before the learner improves on its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    controller: str = Field(
        description="name of a controller, e.g. greedy_latency, completion_greedy or oracle; it "
        "sees the whole network"
    )
    iterations: int = Field(gt=0, description="rollouts whose choices are copied")
    teacher_share: float = Field(
        0.5, ge=0, le=1,
        description="share of the networks that the controller drives; in the others the policy "
        "acts and the controller says what it would have done",
    )  # fmt: skip
    parameters: ControllersConfig = Field(
        ControllersConfig(), description="of the controller, as in a task"
    )


class ClippedConfig(BaseModel):
    """Switches that the learners share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig = Field(NetworkConfig(), description="actor and critic")
    rollout_slots: int = Field(64, gt=0, description="slots between updates")
    stagger: bool = Field(
        True, description="spread the networks over the episode before the first rollout"
    )
    clip: float = Field(0.2, gt=0, description="the joint ratio is held within 1 -+ clip")
    epochs: int = Field(5, gt=0, description="passes over a rollout")
    num_minibatches: int = Field(4, gt=0, description="parts of a pass, split over slots, networks")
    target_kl: float | None = Field(
        0.03, gt=0, description="no further epoch once the mean divergence exceeds it; null: never"
    )
    learning_rate: float = Field(3e-3, gt=0, description="of Adam, actor and critic")
    anneal: bool = Field(True, description="lower the learning rate linearly to 0")
    adam_eps: float = Field(1e-5, gt=0, description="epsilon of Adam")
    max_grad_norm: float = Field(10.0, gt=0, description="gradients are clipped to this norm")
    entropy: EntropyConfig = Field(EntropyConfig(), description="entropy bonus of each head")
    huber_delta: float = Field(10.0, gt=0, description="of the value loss, in normalised units")
    value_clip: float | None = Field(
        None, gt=0, description="bound on the move of a normalised value per update; null: none"
    )
    value_norm_decay: float = Field(
        0.95, ge=0, lt=1, description="memory of the target statistics, per rollout"
    )
    imitate: ImitateConfig | None = Field(
        None, description="copy a controller first; null: begin from random weights"
    )


class MappoConfig(ClippedConfig):
    """MAPPO: a critic that sees the whole network."""

    kind: Literal["mappo"] = Field("mappo", description="names the learner")
    discount: float = Field(0.97, ge=0, le=1, description="gamma, per slot")
    trace: float = Field(0.9, ge=0, le=1, description="lambda of the advantage estimate")
    critic: Literal["network", "device"] = Field(
        "network", description="one value per network, or one per device"
    )
    reward_sharing: float = Field(
        1.0, ge=0, le=1,
        description="1: all devices earn the network's reward (the metric); below, a device earns "
        "its own requests' part plus this share of the others', which is another objective",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check_sharing(self) -> MappoConfig:
        if self.reward_sharing < 1 and self.critic != "device":
            raise ValueError(
                f"reward_sharing is {self.reward_sharing} with critic '{self.critic}'; rewards of "
                "their own need critic: device (or set reward_sharing: 1)"
            )
        return self


class IppoConfig(ClippedConfig):
    """IPPO: a critic that sees what a device sees, its own row, its pairs and the servers."""

    kind: Literal["ippo"] = Field("ippo", description="names the learner")
    discount: float = Field(0.97, ge=0, le=1, description="gamma, per slot")
    trace: float = Field(0.9, ge=0, le=1, description="lambda of the advantage estimate")
    reward_sharing: float = Field(
        1.0, ge=0, le=1,
        description="1: all devices earn the network's reward (the metric); below, a device earns "
        "its own requests' part plus this share of the others', which is another objective",
    )  # fmt: skip

    @property
    def critic(self) -> Literal["own"]:
        """Name the critic."""
        return "own"


class BanditConfig(ClippedConfig):
    """A contextual bandit: each slot's choice is judged by itself, nothing is discounted to it."""

    kind: Literal["bandit"] = Field("bandit", description="names the learner")
    reward: Literal["predicted", "realised"] = Field(
        "predicted",
        description="predicted: minus the predicted remaining seconds of all requests under the "
        "decision; realised: minus the seconds that the device's own request went on to take",
    )

    @property
    def critic(self) -> Literal["network", "device"]:
        """Name the critic: the baseline of the reward."""
        return "network" if self.reward == "predicted" else "device"

    @property
    def discount(self) -> float:
        """Return 0: a bandit looks at one step."""
        return 0.0

    @property
    def trace(self) -> float:
        """Return 0."""
        return 0.0

    @property
    def reward_sharing(self) -> float:
        """Return 1: its rewards are those of its own definition."""
        return 1.0


OnPolicyConfig = MappoConfig | IppoConfig | BanditConfig
