"""MAPPO: one clipped policy shared by all devices, one centralised critic, four action heads.

Shape legend: T slots, B networks, M devices, K value columns (1 per network, or 1 per device).

Yu et al., arXiv 2103.01955; every switch with its default and its source is in docs/mappo.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from agents import checkpoint
from agents.gae import gae, next_values
from agents.network import Critic, FeatureSizes, NetworkConfig
from agents.policy import PolicyController, build_actor, policy_content
from agents.rollout import Batch, Rollout, Transition, flatten, keep_active, stack
from agents.value_norm import ValueNorm
from envs.action import Head
from envs.batched import BatchedEnv, Step
from envs.observation import Observation, View, schema
from uara.errors import UserError
from uara.network import Controller

POLICY_STREAM, SHUFFLE_STREAM = 1, 2  # offsets that keep the generators of a seed apart


class EntropyConfig(BaseModel):
    """Weight of each head's entropy; heads have different units, so each has its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: float = Field(0.001, ge=0, description="nats of the server choice")
    bandwidth: float = Field(0.0, ge=0, description="nats of the Beta density of the band weight")
    power: float = Field(0.0, ge=0, description="nats of the Beta density of the power")
    draft_length: float = Field(0.003, ge=0, description="nats of the draft length")


class MappoConfig(BaseModel):
    """Every switch of MAPPO."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mappo"] = Field("mappo", description="names the learner")
    network: NetworkConfig = Field(NetworkConfig(), description="actor and critic")
    rollout_slots: int = Field(64, gt=0, description="slots between updates")
    stagger: bool = Field(
        True, description="spread the networks over the episode before the first rollout"
    )
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

    @model_validator(mode="after")
    def _check_sharing(self) -> MappoConfig:
        if self.reward_sharing < 1 and self.critic != "device":
            raise ValueError(
                f"reward_sharing is {self.reward_sharing} with critic '{self.critic}'; rewards of "
                "their own need critic: device (or set reward_sharing: 1)"
            )
        return self


@dataclass(frozen=True)
class Losses:
    """Losses of a minibatch and what is logged of them, scalars."""

    actor: Tensor
    critic: Tensor
    logged: dict[str, Tensor]


def device_reward(reward: Tensor, load: Tensor, sharing: float) -> Tensor:
    """Mix a device's own part of the network's reward with that of the others, (B, M).

    Args:
        reward: (B,) of the network.
        load: (B, M) requests waiting or alive at each device; the parts go by it.
        sharing: 1 gives everybody the network's reward, 0 its own part only.
    """
    total = load.sum(1, keepdim=True)
    part = torch.where(total > 0, load / total.clamp_min(1e-9), 1 / load.shape[1])
    own = reward.unsqueeze(1) * part
    return own + sharing * (reward.unsqueeze(1) - own)


def normalise_advantage(advantage: Tensor, active: Tensor) -> Tensor:
    """Centre and scale advantages (T, B, M) over the devices with a request; 0 elsewhere."""
    weight = active.to(advantage.dtype)
    count = weight.sum().clamp_min(1)
    mean = (advantage * weight).sum() / count
    variance = ((advantage - mean).square() * weight).sum() / count
    return (advantage - mean) / (variance.sqrt() + 1e-8) * weight


class MappoLearner:
    """Collects rollouts with the current policy and improves it."""

    policy_suffix = ".pt"

    def __init__(self, config: MappoConfig, env: BatchedEnv, view: View, seed: int) -> None:
        """Make networks, optimisers and generators of their own; the environment is not stepped.

        Args:
            config: every switch.
            env: B networks; the learner is its only user.
            view: what the actor may read.
            seed: of the weights, the drawn actions and the shuffling.

        Raises:
            UserError: if the control config leaves nothing to learn.
        """
        if not env.control.learned:
            raise UserError(
                "the control config leaves nothing to learn; set association, bandwidth, power or "
                "draft_length to 'learned'"
            )
        self.config = config
        self.env = env
        self.view = view
        sizes = FeatureSizes.of(schema())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            length = env.world.physics.config.max_draft_length
            self.actor = build_actor(config.network, env.control, view, length)
            self.critic = Critic(sizes, config.network, config.critic)
        self.value_norm = ValueNorm(config.value_norm_decay)
        self.actor_optimiser = self._make_optimiser(self.actor)
        self.critic_optimiser = self._make_optimiser(self.critic)
        self.policy_generator = torch.Generator().manual_seed(seed * 1009 + POLICY_STREAM)
        self.shuffle_generator = torch.Generator().manual_seed(seed * 1009 + SHUFFLE_STREAM)
        self.env_steps = 0
        self._observation: Observation | None = None
        self._rollout: tuple[Rollout, Tensor] | None = None

    def start(self) -> None:
        """Begin the first episodes, staggered over the horizon if so configured."""
        self._observation = self.env.reset()
        if not self.config.stagger:
            return
        horizon = self.env.last_slot
        turn = torch.arange(self.env.num_networks) * horizon // self.env.num_networks
        for slot in range(horizon):
            with torch.no_grad():
                sample = self.actor.act(self._observation, self.policy_generator)
            self._observation = self.env.step(sample.action).observation
            begins = turn == slot
            if bool(begins.any()):
                self._observation = self.env.reset(begins)

    @torch.no_grad()
    def collect(self) -> dict[str, float]:
        """Play one rollout with drawn actions.

        Returns:
            Metrics with keys rollout/...
        """
        assert self._observation is not None, "collect needs start() or load_state_dict() first"
        transitions, steps = [], []
        for _ in range(self.config.rollout_slots):
            observation = self._observation
            sample = self.actor.act(observation, self.policy_generator)
            value = self._value(observation)
            load = self.env.state.has_request + self.env.state.waiting_requests
            step = self.env.step(sample.action)
            cut = bool(step.truncated.any())
            final_value = self._value(step.final_observation) if cut else torch.zeros_like(value)
            transitions.append(
                Transition(
                    observation=observation,
                    action=sample.action,
                    log_prob=sample.log_prob,
                    value=value,
                    final_value=final_value,
                    reward=self._reward_columns(step.reward, load),
                    terminated=step.terminated,
                    truncated=step.truncated,
                )
            )
            steps.append(step)
            self._observation = step.observation
        self._rollout = stack(transitions), self._value(self._observation)
        self.env_steps += self.config.rollout_slots * self.env.num_networks
        return rollout_metrics(steps, self.env.world.config.slot_s)

    def update(self, progress: float) -> dict[str, float]:
        """Improve actor and critic on the last rollout.

        Args:
            progress: share of the training that is over, for the annealing.

        Returns:
            Metrics with keys train/...
        """
        assert self._rollout is not None, "update needs collect() first"
        config = self.config
        rate = config.learning_rate * ((1 - progress) if config.anneal else 1.0)
        for optimiser in (self.actor_optimiser, self.critic_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate
        batch, logged = self._prepare(*self._rollout)
        self._rollout = None
        epochs = 0
        for epochs in range(1, config.epochs + 1):
            records = [
                self._learn(part)
                for part in batch.minibatches(config.num_minibatches, self.shuffle_generator)
            ]
            if epochs == 1:
                logged["train/first_ratio_error"] = records[0]["train/ratio_error"]
            divergence = torch.stack([r["train/approx_kl"] for r in records]).mean()
            if config.target_kl is not None and bool(divergence > config.target_kl):
                break
        last = {k: torch.stack([r[k] for r in records]).mean() for k in records[0]}
        last.pop("train/ratio_error")
        if "server" in self.actor.heads:
            logged["train/stay_logit"] = self.actor.stay_logit.detach()
        metrics = {key: float(value) for key, value in (logged | last).items()}
        return metrics | {"train/epochs": float(epochs), "train/learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on; tensors and plain values."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "value_norm": self.value_norm.state_dict(),
            "actor_optimiser": self.actor_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "policy_generator": self.policy_generator.get_state(),
            "shuffle_generator": self.shuffle_generator.get_state(),
            "env": self.env.state_dict(),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; the next rollout repeats bit for bit on CPU."""
        for name in ("actor", "critic", "value_norm", "actor_optimiser", "critic_optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.policy_generator.set_state(state["policy_generator"])
        self.shuffle_generator.set_state(state["shuffle_generator"])
        self._observation = self.env.load_state_dict(state["env"])
        self.env_steps = int(state["env_steps"])

    def policy_content(self) -> dict[str, Any]:
        """Collect what a policy file holds."""
        length = self.env.world.physics.config.max_draft_length
        return policy_content(self.actor, self.config.network, self.env.control, length)

    def save_policy(self, path: Path) -> None:
        """Write the current policy, without optimiser and environment."""
        checkpoint.save(path, self.policy_content())

    def controller(self) -> Controller:
        """Return the current policy as a controller that takes the most likely choices."""
        return PolicyController(self.actor, self.env.control, self.env.world.physics)

    def losses(self, batch: Batch) -> Losses:
        """Compute the losses of a minibatch (arXiv 2103.01955 eq. 1 and 2).

        Devices without a request count neither in the ratio nor in the entropy.
        """
        config = self.config
        rows = keep_active(batch) if self.view == "device" else batch
        log_prob, entropy = self.actor.evaluate(rows.observation, rows.action)
        weight = rows.observation.active.to(log_prob.dtype)
        count = weight.sum().clamp_min(1)

        def mean(tensor: Tensor) -> Tensor:
            return (tensor * weight).sum() / count

        # Actions of idle devices have no effect; their ratio is held at 1.
        log_ratio = torch.where(rows.observation.active, log_prob - rows.log_prob, 0.0)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = mean(torch.minimum(ratio * rows.advantage, clipped * rows.advantage))
        entropies = {head: mean(value) for head, value in entropy.items()}
        bonus = torch.stack([_entropy_weight(config, h) * e for h, e in entropies.items()]).sum()

        value = self.critic(batch.observation)
        critic = self._value_loss(value, batch)
        detached = ratio.detach()
        logged = {
            "train/policy_loss": -gain.detach(),
            "train/value_loss": critic.detach(),
            "train/approx_kl": mean(detached - 1 - log_ratio.detach()),
            "train/clip_fraction": mean(((detached - 1).abs() > config.clip).to(weight.dtype)),
            "train/ratio_error": (detached - 1).abs().amax() if detached.numel() else gain * 0,
        }
        logged |= {f"train/entropy_{head}": e.detach() for head, e in entropies.items()}
        return Losses(-gain - bonus, critic, logged)

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step of actor and critic; nothing here waits for a number."""
        losses = self.losses(batch)
        self.actor_optimiser.zero_grad()
        self.critic_optimiser.zero_grad()
        (losses.actor + losses.critic).backward()  # type: ignore[no-untyped-call]
        limit = self.config.max_grad_norm
        norms = {
            "train/actor_grad_norm": nn.utils.clip_grad_norm_(self.actor.parameters(), limit),
            "train/critic_grad_norm": nn.utils.clip_grad_norm_(self.critic.parameters(), limit),
        }
        self.actor_optimiser.step()
        self.critic_optimiser.step()
        return losses.logged | norms

    def _value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        """Compute the Huber loss of normalised values; with clipping the larger of two."""
        delta = self.config.huber_delta
        loss = F.huber_loss(value, batch.target, reduction="none", delta=delta)
        if self.config.value_clip is not None:
            bound = self.config.value_clip
            near = batch.value + (value - batch.value).clamp(-bound, bound)
            clipped = F.huber_loss(near, batch.target, reduction="none", delta=delta)
            loss = torch.maximum(loss, clipped)
        return loss.mean()

    @torch.no_grad()
    def _prepare(self, rollout: Rollout, last_value: Tensor) -> tuple[Batch, dict[str, Tensor]]:
        """Compute advantages and targets on the real scale, then bring both to unit scale."""
        advantage = gae(
            rollout.reward,
            rollout.value,
            next_values(rollout.value, last_value, rollout.final_value, rollout.truncated),
            rollout.terminated,
            rollout.truncated,
            discount=self.config.discount,
            trace=self.config.trace,
        )
        target = advantage + rollout.value
        spread = target.var().clamp_min(1e-12)
        logged = {
            "train/explained_variance": 1 - advantage.var() / spread,
            "train/value_target": target.mean(),
            "train/advantage_std": advantage.std(),
        }
        self.value_norm.update(target)
        active = rollout.observation.active
        batch = flatten(
            rollout,
            normalise_advantage(advantage.expand(active.shape), active),
            self.value_norm.normalise(target),
            self.value_norm.normalise(rollout.value),
        )
        return batch, logged

    def _value(self, observation: Observation) -> Tensor:
        """Predict values on the real scale, (B, K)."""
        return self.value_norm.denormalise(self.critic(observation))

    def _reward_columns(self, reward: Tensor, load: Tensor) -> Tensor:
        """Give the network or each device its reward, (B, K)."""
        if self.config.critic == "network":
            return reward.unsqueeze(1)
        return device_reward(reward, load, self.config.reward_sharing)

    def _make_optimiser(self, module: nn.Module) -> torch.optim.Adam:
        config = self.config
        return torch.optim.Adam(
            module.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )


def _entropy_weight(config: MappoConfig, head: Head) -> float:
    """Look up the entropy coefficient of a head."""
    weight: float = getattr(config.entropy, head)
    return weight


def rollout_metrics(steps: list[Step], slot_s: float) -> dict[str, float]:
    """Summarise the slots of a rollout; keys and units are in docs/metrics.md."""
    outcomes = [step.outcome for step in steps]
    alive_s = torch.stack([o.alive_s for o in outcomes])
    finished = torch.stack([o.finished for o in outcomes]).sum().clamp_min(1)
    e2e_s = torch.stack([o.e2e_s for o in outcomes]).sum()
    handovers = torch.stack([o.handover for o in outcomes]).sum()
    energy_j = torch.stack([o.device_energy_j for o in outcomes]).sum()
    decisions = [step.decision for step in steps]
    used = torch.stack([o.alive_s for o in outcomes]).numel()
    return {
        "rollout/reward": float(torch.stack([step.reward for step in steps]).mean()),
        "rollout/alive_requests": float(alive_s.mean() / slot_s),
        "rollout/e2e_latency_s": float(e2e_s / finished),
        "rollout/finished_requests": float(finished / used),
        "rollout/handovers": float(handovers / finished),
        "rollout/device_energy_j": float(energy_j / finished),
        "rollout/draft_length": float(
            torch.stack([d.draft_length for d in decisions]).float().mean()
        ),
        "rollout/illegal_servers": float(torch.stack([step.illegal for step in steps]).sum()),
    }
