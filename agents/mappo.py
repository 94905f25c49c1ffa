"""MAPPO: one clipped policy shared by all devices, one centralised critic, four action heads.

IPPO and the contextual bandit are the same learner with another critic or another reward.

Shape legend: T slots, B networks, M devices, K value columns (1 per network, or 1 per device).

Yu et al., arXiv 2103.01955; every switch with its default and its source is in docs/mappo.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents import checkpoint
from agents.device_reward import device_reward
from agents.gae import gae, next_values
from agents.imitation import Teacher
from agents.network import Critic, FeatureSizes
from agents.on_policy import OnPolicyConfig
from agents.policy import PolicyController, build_actor, policy_content
from agents.rollout import Batch, Rollout, Transition, flatten, keep_active, stack
from agents.rollout_metrics import head_histograms, rollout_metrics
from agents.seeding import seeded_generator
from agents.stagger import begin_episodes
from agents.value_norm import ValueNorm
from envs.action import Action, Head
from envs.batched import BatchedEnv, Step
from envs.observation import Observation, View, schema
from uara.errors import UserError
from uara.network import Controller, NetworkState

POLICY_STREAM, SHUFFLE_STREAM = 1, 2


@dataclass(frozen=True)
class Losses:
    """Losses of a minibatch and what is logged of them, scalars."""

    actor: Tensor
    critic: Tensor
    logged: dict[str, Tensor]


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

    def __init__(
        self,
        config: OnPolicyConfig,
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
            seed: of the weights, the drawn actions and the shuffling.
            device: where networks and rollouts live; the environment stays where it is.

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
        self.device = torch.device(device)
        sizes = FeatureSizes.of(schema())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            length = env.world.physics.config.max_draft_length
            self.actor = build_actor(config.network, env.control, view, length)
            self.critic = Critic(sizes, config.network, config.critic)
        self.actor.to(self.device)
        self.critic.to(self.device)
        self.value_norm = ValueNorm(config.value_norm_decay).to(self.device)
        self.actor_optimiser = self._make_optimiser(self.actor)
        self.critic_optimiser = self._make_optimiser(self.critic)
        self.policy_generator = seeded_generator(self.device, seed, POLICY_STREAM)
        self.shuffle_generator = seeded_generator(self.device, seed, SHUFFLE_STREAM)
        self.env_steps = 0
        self._teacher = None if config.imitate is None else Teacher(config.imitate, env)
        self._observation: Observation | None = None
        self._rollout: tuple[Rollout, Tensor] | None = None
        self._shown: dict[str, Tensor] = {}
        self._copies = False  # the actions of the rollout are those of the teacher

    def start(self) -> None:
        """Begin the first episodes, staggered over the horizon if so configured."""
        self._observation = begin_episodes(self.env, self._act, is_staggered=self.config.stagger)

    @torch.no_grad()
    def collect(self) -> dict[str, float]:
        """Play one rollout with drawn actions.

        Returns:
            Metrics with keys rollout/...
        """
        assert self._observation is not None, "collect needs start() or load_state_dict() first"
        transitions, steps = [], []
        teacher = self._teacher if self._is_imitating() else None
        self._copies = teacher is not None
        if teacher is not None:
            teacher.begin()
        for _ in range(self.config.rollout_slots):
            observation = self._observation.to(self.device)
            sample = self.actor.act(observation, self.policy_generator)
            value = self._value(observation)
            state, action = self.env.state, sample.action
            played = action.to(self._observation.active.device)
            if teacher is not None:
                label, played = teacher.lead(state, played)
                action = label.to(self.device)
            step = self.env.step(played)
            if teacher is not None:
                teacher.follow(step)
            final_value = torch.zeros_like(value)
            if bool(step.truncated.any()):
                final_value = self._value(step.final_observation.to(self.device))
            transitions.append(
                Transition(
                    observation=observation,
                    action=action,
                    log_prob=sample.log_prob,
                    rank=sample.rank,
                    value=value,
                    final_value=final_value,
                    reward=self._slot_reward(state, step).to(self.device),
                    terminated=step.terminated.to(self.device),
                    truncated=step.truncated.to(self.device),
                )
            )
            steps.append(step)
            self._observation = step.observation
        rollout = self._credited(stack(transitions), steps)
        self._shown = head_histograms(rollout.action, rollout.observation.active)
        self._rollout = rollout, self._value(self._observation.to(self.device))
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
        copies, self._copies = self._copies, False
        epochs = 0
        for epochs in range(1, config.epochs + 1):
            records = [
                self._learn(part, is_copy=copies)
                for part in batch.minibatches(config.num_minibatches, self.shuffle_generator)
            ]
            if epochs == 1:
                logged["train/first_ratio_error"] = records[0]["train/ratio_error"]
            divergence = torch.stack([r["train/approx_kl"] for r in records]).mean()
            if not copies and config.target_kl is not None and bool(divergence > config.target_kl):
                break
        last = {k: torch.stack([r[k] for r in records]).mean() for k in records[0]}
        last.pop("train/ratio_error")
        if "server" in self.actor.heads:
            logged["train/stay_logit"] = self.actor.stay_logit.detach()
        metrics = {key: float(value) for key, value in (logged | last).items()}
        return metrics | {"train/epochs": float(epochs), "train/learning_rate": rate}

    def histograms(self) -> dict[str, Tensor]:
        """Return what was chosen in the last rollout, by head."""
        return self._shown

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
        config, control = self.config, self.env.control
        return policy_content(config.kind, self.actor, config.network, control, length)

    def save_policy(self, path: Path) -> None:
        """Write the current policy, without optimiser and environment."""
        checkpoint.save(path, self.policy_content())

    def controller(self) -> Controller:
        """Return the current policy as a controller that takes the most likely choices."""
        physics = self.env.world.physics
        return PolicyController(self.actor, self.env.control, physics, name=self.config.kind)

    def losses(self, batch: Batch, *, is_copy: bool = False) -> Losses:
        """Compute the losses of a minibatch (arXiv 2103.01955 eq. 1 and 2).

        Devices without a request count neither in the ratio nor in the entropy.

        Args:
            batch: rows of a rollout.
            is_copy: the actions are those of a teacher: their log-likelihood is raised instead.
        """
        config = self.config
        rows = keep_active(batch) if self.view == "device" else batch
        log_prob, entropy = self.actor.evaluate(rows.observation, rows.action, rows.rank)
        weight = rows.observation.active.to(log_prob.dtype)
        count = weight.sum().clamp_min(1)

        def mean(tensor: Tensor) -> Tensor:
            return (tensor * weight).sum() / count

        # Actions of idle devices have no effect; their ratio is held at 1.
        log_ratio = torch.where(rows.observation.active, log_prob - rows.log_prob, 0.0)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = mean(
            log_prob if is_copy else torch.minimum(ratio * rows.advantage, clipped * rows.advantage)
        )
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

    def _act(self, observation: Observation) -> Action:
        """Draw actions for the environment."""
        sample = self.actor.act(observation.to(self.device), self.policy_generator)
        return sample.action.to(observation.active.device)

    def _learn(self, batch: Batch, *, is_copy: bool) -> dict[str, Tensor]:
        """Take one gradient step of actor and critic; nothing here waits for a number."""
        losses = self.losses(batch, is_copy=is_copy)
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

    def _slot_reward(self, state: NetworkState, step: Step) -> Tensor:
        """Give the network or each device its reward of a slot that began in `state`, (B, K)."""
        if self.config.critic == "network":
            return step.reward.unsqueeze(1)
        load = state.has_request + state.waiting_requests
        return device_reward(step.reward, load, self.config.reward_sharing)

    def _credited(self, rollout: Rollout, steps: list[Step]) -> Rollout:
        """Change rewards that only the rest of the rollout shows; none here."""
        return rollout

    def _is_imitating(self) -> bool:
        """Tell whether the rollout at hand is one of those that copy a controller."""
        if self.config.imitate is None:
            return False
        rollouts = self.env_steps // (self.config.rollout_slots * self.env.num_networks)
        return rollouts < self.config.imitate.iterations

    def _make_optimiser(self, module: nn.Module) -> torch.optim.Adam:
        config = self.config
        return torch.optim.Adam(
            module.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )


def _entropy_weight(config: OnPolicyConfig, head: Head) -> float:
    """Look up the entropy coefficient of a head."""
    weight: float = getattr(config.entropy, head)
    return weight
