"""MASAC: maximum-entropy learning off policy, hybrid actions, one policy shared by all devices.

Shape legend: B networks, M devices, C candidates (servers, or one), L draft lengths, N sampled
transitions.

Haarnoja et al., arXiv 1812.05905 (twin critics, learned temperature); Christodoulou,
arXiv 1910.07207 (exact expectation over discrete actions). Every switch, and which joint action
each estimate uses, is in docs/masac.md.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from agents import checkpoint
from agents.action_value import TwinValue
from agents.device_reward import device_reward
from agents.network import CandidateLaws, FeatureSizes, NetworkConfig
from agents.policy import PolicyController, build_actor, policy_content
from agents.replay import Replay, ReplayBatch, ReplayConfig
from agents.rollout_metrics import head_histograms, rollout_metrics
from agents.seeding import seeded_generator
from agents.soft_values import draw, draw_uniformly, entropies, expected_value
from agents.stagger import begin_episodes
from envs.action import Action, Head
from envs.batched import BatchedEnv
from envs.observation import Observation, View, schema
from uara.errors import UserError
from uara.network import Controller

POLICY_STREAM, REPLAY_STREAM, LEARNING_STREAM = 11, 12, 13


class TargetEntropyConfig(BaseModel):
    """Entropy that each head's temperature aims at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of ln(servers in reach); most slots only decide to stay",
    )
    draft_length: float = Field(0.2, ge=0, le=1, description="share of ln(number of lengths)")
    bandwidth: float = Field(-1.0, description="nats of the Beta density: minus its dimension")
    power: float = Field(-1.0, description="nats of the Beta density: minus its dimension")


class MasacConfig(BaseModel):
    """Every switch of MASAC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["masac"] = Field("masac", description="names the learner")
    network: NetworkConfig = Field(NetworkConfig(), description="actor and critics")
    rollout_slots: int = Field(8, gt=0, description="slots between updates")
    stagger: bool = Field(
        True, description="spread the networks over the episode before the first rollout"
    )
    warmup: int = Field(
        4096, ge=0, description="network slots played uniformly over the legal space, no learning"
    )
    replay: ReplayConfig = Field(ReplayConfig(), description="the buffer")
    gradient_steps: int = Field(8, gt=0, description="of the critics, per rollout")
    batch_size: int = Field(128, gt=0, description="network slots per gradient step")
    policy_start: int = Field(
        1000,
        ge=0,
        description="gradient steps of the critics before the actor moves: it would "
        "follow their first errors, since little entropy is asked for",
    )
    policy_delay: int = Field(1, gt=0, description="gradient steps of the critics per actor step")
    discount: float = Field(0.97, ge=0, lt=1, description="gamma, per slot")
    reward_sharing: float = Field(
        1.0, ge=0, le=1,
        description="1: all devices earn the network's reward (the metric); below, a device earns "
        "its own requests' part plus this share of the others', which is another objective",
    )  # fmt: skip
    reward_scale: float = Field(
        0.1, gt=0, description="the reward is multiplied by this times the number of devices"
    )
    polyak: float = Field(
        0.02, gt=0, le=1, description="share of the online critics that targets take per step"
    )
    actor_rate: float = Field(1e-3, gt=0, description="learning rate of the actor")
    critic_rate: float = Field(1e-3, gt=0, description="learning rate of the critics")
    temperature_rate: float = Field(1e-3, gt=0, description="learning rate of the temperatures")
    anneal: bool = Field(True, description="lower the rates linearly to 0")
    adam_eps: float = Field(1e-8, gt=0, description="epsilon of Adam")
    max_grad_norm: float = Field(10.0, gt=0, description="gradients are clipped to this norm")
    initial_temperature: float = Field(0.01, gt=0, description="reward per nat at the start")
    min_temperature: float = Field(1e-5, gt=0, description="no temperature falls below it")
    max_temperature: float = Field(1.0, gt=0, description="no temperature rises above it")
    target_entropy: TargetEntropyConfig = Field(
        TargetEntropyConfig(), description="what the temperatures aim at"
    )

    @model_validator(mode="after")
    def _check_temperatures(self) -> MasacConfig:
        low, start, high = self.min_temperature, self.initial_temperature, self.max_temperature
        if not low <= start <= high:
            raise ValueError(
                f"initial_temperature is {start:g}, min_temperature {low:g}, max_temperature "
                f"{high:g}; put the first between the others"
            )
        return self


@dataclass(frozen=True)
class PolicyStep:
    """What the actor is improved by, and the entropies beside what they should be."""

    objective: Tensor  # scalar, to be raised
    surplus: dict[Head, Tensor]  # mean entropy minus its target, scalars
    entropy: dict[Head, Tensor]  # mean over the devices that have a choice, scalars


class MasacLearner:
    """Plays with the current policy, remembers, and learns from what it remembers."""

    policy_suffix = ".pt"

    def __init__(
        self,
        config: MasacConfig,
        env: BatchedEnv,
        view: View,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make networks, optimisers and generators of their own; the environment is not stepped.

        Args:
            config: every switch.
            env: B networks; the learner is its only user.
            view: what the actor may read.
            seed: of the weights, the drawn actions and the sampled transitions.
            device: where networks and buffer live; the environment stays where it is.

        Raises:
            UserError: if the control config leaves nothing to learn.
        """
        if not env.control.learned:
            raise UserError(
                "the control config leaves nothing to learn; set association, bandwidth, power or "
                "draft_length to 'learned'"
            )
        if config.network.coordination == "sequence":
            raise UserError(
                "learner masac takes exact expectations over each device's servers, which choices "
                "in sequence do not have; set network.coordination to none or proposal"
            )
        self.config = config
        self.env = env
        self.device = torch.device(device)
        self.max_draft_length = env.world.physics.config.max_draft_length
        sizes, heads = FeatureSizes.of(schema()), env.control.learned
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = build_actor(config.network, env.control, view, self.max_draft_length)
            self.critics = TwinValue(sizes, config.network, heads, self.max_draft_length)
        self.actor.to(self.device)
        self.critics.to(self.device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        start = torch.tensor(config.initial_temperature, device=self.device).log()
        self.log_temperature = nn.ParameterDict({head: start.clone() for head in heads})
        self.actor_optimiser = self._make_optimiser(self.actor)
        self.critic_optimiser = self._make_optimiser(self.critics)
        self.temperature_optimiser = self._make_optimiser(self.log_temperature)
        self.policy_generator = seeded_generator(self.device, seed, POLICY_STREAM)
        self.replay_generator = seeded_generator(self.device, seed, REPLAY_STREAM)
        self.learning_generator = seeded_generator(self.device, seed, LEARNING_STREAM)
        self.replay: Replay | None = None
        self.env_steps = 0
        self.gradient_steps = 0
        self._observation: Observation | None = None
        self._shown: dict[str, Tensor] = {}

    def start(self) -> None:
        """Begin the first episodes, staggered over the horizon if so configured."""
        observation = begin_episodes(self.env, self._act, is_staggered=self.config.stagger)
        self._observation = observation
        self.replay = self._empty_replay(observation)
        self.replay.begin(observation)

    @torch.no_grad()
    def collect(self) -> dict[str, float]:
        """Play slots with drawn actions and remember them.

        Returns:
            Metrics with keys rollout/...
        """
        assert self._observation is not None, "collect needs start() or load_state_dict() first"
        assert self.replay is not None
        steps = []
        scale = self.config.reward_scale * self.env.world.num_devices
        for _ in range(self.config.rollout_slots):
            action = self._act(self._observation)
            load = self.env.state.has_request + self.env.state.waiting_requests
            step = self.env.step(action)
            reward = device_reward(scale * step.reward, load, self.config.reward_sharing)
            self.replay.add(action, reward, step)
            self._shown = head_histograms(action, self._observation.active)
            steps.append(step)
            self._observation = step.observation
            self.env_steps += self.env.num_networks
        return rollout_metrics(steps, self.env.world.config.slot_s)

    def update(self, progress: float) -> dict[str, float]:
        """Take gradient steps on remembered slots.

        Args:
            progress: share of the training that is over, for the annealing.

        Returns:
            Metrics with keys train/...; none during the warm-up.
        """
        if self._is_warming_up():
            return {}
        assert self.replay is not None, "update needs collect() first"
        config = self.config
        share = (1 - progress) if config.anneal else 1.0
        rates = (
            (self.actor_optimiser, config.actor_rate),
            (self.critic_optimiser, config.critic_rate),
            (self.temperature_optimiser, config.temperature_rate),
        )
        for optimiser, rate in rates:
            for group in optimiser.param_groups:
                group["lr"] = rate * share
        records: dict[str, list[Tensor]] = {}
        for _ in range(config.gradient_steps):
            batch = self.replay.sample(config.batch_size, self.replay_generator)
            logged = self._improve_critics(batch)
            self.gradient_steps += 1
            is_turn = self.gradient_steps % config.policy_delay == 0
            if is_turn and self.gradient_steps > config.policy_start:
                logged |= self._improve_actor(batch.observation)
            self._follow()
            for key, value in logged.items():
                records.setdefault(key, []).append(value)
        metrics = {key: float(torch.stack(values).mean()) for key, values in records.items()}
        played = config.rollout_slots * self.env.num_networks
        return metrics | {
            "train/learning_rate": config.actor_rate * share,
            "train/updates_to_data": config.gradient_steps / played,
            "train/replay_ratio": config.gradient_steps * config.batch_size / played,
            "train/buffer": float(self.replay.filled * self.env.num_networks),
        }

    def histograms(self) -> dict[str, Tensor]:
        """Return what was chosen in the last slot, by head."""
        return self._shown

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on; tensors and plain values."""
        assert self.replay is not None, "nothing was played yet"
        state = {name: getattr(self, name).state_dict() for name in self._modules()}
        state |= {name: getattr(self, name).get_state() for name in self._generators()}
        return state | {
            "replay": self.replay.state_dict() if self.config.replay.in_checkpoint else None,
            "env": self.env.state_dict(),
            "env_steps": self.env_steps,
            "gradient_steps": self.gradient_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; with the buffer stored, bit for bit on CPU."""
        for name in self._modules():
            getattr(self, name).load_state_dict(state[name])
        for name in self._generators():
            getattr(self, name).set_state(state[name])
        self._observation = self.env.load_state_dict(state["env"])
        self.replay = self._empty_replay(self._observation)
        if state["replay"] is None:
            self.replay.begin(self._observation)
        else:
            self.replay.load_state_dict(state["replay"])
        self.env_steps = int(state["env_steps"])
        self.gradient_steps = int(state["gradient_steps"])

    def policy_content(self) -> dict[str, Any]:
        """Collect what a policy file holds."""
        config, control = self.config, self.env.control
        return policy_content(
            config.kind, self.actor, config.network, control, self.max_draft_length
        )

    def save_policy(self, path: Path) -> None:
        """Write the current policy, without optimisers, critics and environment."""
        checkpoint.save(path, self.policy_content())

    def controller(self) -> Controller:
        """Return the current policy as a controller that takes the most likely choices."""
        physics = self.env.world.physics
        return PolicyController(self.actor, self.env.control, physics, name=self.config.kind)

    @torch.no_grad()
    def soft_value(self, observation: Observation) -> Tensor:
        """Estimate what a state is worth to each device, (N, M), by the lower of the targets.

        A device's own choice is taken in exact expectation over its discrete heads, the others' is
        one fresh draw. Where all earn the same, the estimates of all devices are averaged. Entropy
        counts beyond its target only: else more requests, which bring more choices, would be worth
        more.
        """
        laws = self.actor.candidate_laws(observation)
        drawn = draw(laws, self.learning_generator)
        value = self.targets.least(observation, drawn.action, drawn.shares)
        own = torch.where(observation.active, expected_value(laws, value), value.mean((-1, -2)))
        active = observation.active.to(own.dtype)
        bonus = torch.zeros_like(own)
        for head, entropy in entropies(laws).items():
            surplus = entropy - self._target_entropy(head, observation.mask)
            bonus = bonus + self.log_temperature[head].exp() * surplus * active
        if self.config.reward_sharing < 1:
            return own + bonus
        return (own.mean(1) + bonus.sum(1)).unsqueeze(1).expand_as(own)

    def policy_step(self, observation: Observation) -> PolicyStep:
        """Compute what the actor is improved by; gradients reach the policy's own choices only."""
        laws = self.actor.candidate_laws(observation)
        drawn = draw(laws, self.learning_generator)
        value = self.critics.least(observation, drawn.action, drawn.shares)
        active = observation.active.to(value.dtype)

        def mean(tensor: Tensor, weight: Tensor) -> Tensor:
            return (tensor * weight).sum() / weight.sum().clamp_min(1)

        objective = mean(expected_value(laws, value), active)
        surplus: dict[Head, Tensor] = {}
        levels: dict[Head, Tensor] = {}
        for head, entropy in entropies(laws).items():
            temperature = self.log_temperature[head].exp().detach()
            objective = objective + temperature * mean(entropy, active)
            weight = active * self._has_choice(head, laws, observation)
            levels[head] = mean(entropy, weight).detach()
            target = mean(self._target_entropy(head, observation.mask), weight)
            surplus[head] = (levels[head] - target) * (weight.sum() > 0)
        return PolicyStep(objective, surplus, levels)

    def _improve_critics(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """Take one gradient step of both critics; nothing here waits for a number."""
        following = self.soft_value(batch.next_observation)
        goes_on = (~batch.terminated).to(following.dtype).unsqueeze(1)
        target = batch.reward + self.config.discount * goes_on * following
        values = self.critics.taken(batch.observation, batch.action)
        errors = [value - target for value in values]
        loss = torch.stack([error.square().mean() for error in errors]).sum()
        self.critic_optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.critics.parameters(), self.config.max_grad_norm)
        self.critic_optimiser.step()
        first, second = (value.detach() for value in values)
        return {
            "train/value_loss": loss.detach() / 2,
            "train/q_mean": first.mean(),
            "train/q_min": first.min(),
            "train/q_max": first.max(),
            "train/twin_gap": (first - second).abs().mean(),
            "train/value_target": target.mean(),
            "train/critic_grad_norm": norm,
            "train/buffer_age": batch.age.float().mean(),
        }

    def _improve_actor(self, observation: Observation) -> dict[str, Tensor]:
        """Take one gradient step of the actor and of the temperatures."""
        self.critics.requires_grad_(False)
        step = self.policy_step(observation)
        self.critics.requires_grad_(True)
        self.actor_optimiser.zero_grad()
        (-step.objective).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.actor.parameters(), self.config.max_grad_norm)
        self.actor_optimiser.step()
        losses = [self.log_temperature[head] * gap for head, gap in step.surplus.items()]
        self.temperature_optimiser.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.temperature_optimiser.step()
        logged = {"train/policy_loss": -step.objective.detach(), "train/actor_grad_norm": norm}
        low, high = self.config.min_temperature, self.config.max_temperature
        with torch.no_grad():
            for head, value in self.log_temperature.items():
                limits = torch.tensor((low, high), device=value.device).log()
                value.copy_(value.clamp(limits[0], limits[1]))
                logged[f"train/temperature_{head}"] = value.exp()
        for head, level in step.entropy.items():
            logged[f"train/entropy_{head}"] = level
            logged[f"train/entropy_surplus_{head}"] = step.surplus[head]
        return logged

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target critics towards the online ones."""
        for target, online in zip(
            self.targets.parameters(), self.critics.parameters(), strict=True
        ):
            target.lerp_(online, self.config.polyak)

    def _act(self, observation: Observation) -> Action:
        """Draw actions for the environment: uniform in the warm-up, then of the policy."""
        here = observation.to(self.device)
        if self._is_warming_up():
            heads, lengths = self.env.control.learned, self.max_draft_length + 1
            action = draw_uniformly(heads, here.mask, lengths, self.policy_generator)
        else:
            action = self.actor.act(here, self.policy_generator).action
        return action.to(observation.active.device)

    def _is_warming_up(self) -> bool:
        return self.env_steps < self.config.warmup

    def _target_entropy(self, head: Head, mask: Tensor) -> Tensor:
        """Look up the entropy that a head should have, (N, M)."""
        target: float = getattr(self.config.target_entropy, head)
        if head == "server":
            return target * mask.sum(-1).to(torch.float32).log()
        level = torch.full(mask.shape[:2], target, device=mask.device)
        return (
            level * float(torch.tensor(self.max_draft_length + 1.0).log())
            if head == "draft_length"
            else level
        )

    def _has_choice(self, head: Head, laws: CandidateLaws, observation: Observation) -> Tensor:
        """Tell which devices have more than one legal choice, (N, M)."""
        if head != "server":
            return torch.ones_like(observation.active, dtype=torch.float32)
        return (observation.mask.sum(-1) > 1).to(torch.float32)

    def _empty_replay(self, observation: Observation) -> Replay:
        """Allocate the buffer for the sizes at hand."""
        generator = torch.Generator(observation.active.device).manual_seed(0)
        lengths = self.max_draft_length + 1
        action = draw_uniformly(self.env.control.learned, observation.mask, lengths, generator)
        last_slot = self.env.last_slot
        return Replay(self.config.replay, observation, action, last_slot, self.device)

    def _make_optimiser(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), eps=self.config.adam_eps, fused=True)

    def _modules(self) -> tuple[str, ...]:
        return (
            *("actor", "critics", "targets", "log_temperature"),
            *("actor_optimiser", "critic_optimiser", "temperature_optimiser"),
        )

    def _generators(self) -> tuple[str, ...]:
        return ("policy_generator", "replay_generator", "learning_generator")
