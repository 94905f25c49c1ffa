"""MAPPO from TorchRL's parts, composed as BenchMARL composes it, on our batched environment."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.modules import MaskedCategorical, MultiAgentMLP, ProbabilisticActor
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from benchmarks.torchrl_env import NetworkTorchRlEnv


@dataclass(frozen=True)
class Settings:
    """What all that are compared have in common."""

    rollout_slots: int = 64
    epochs: int = 5
    num_minibatches: int = 4
    hidden: int = 64
    learning_rate: float = 3e-4
    discount: float = 0.97
    trace: float = 0.9


class TorchRlMappo:
    """Collects and updates like a learner of ours; one value per device, advantages expanded."""

    def __init__(self, env: NetworkTorchRlEnv, settings: Settings) -> None:
        """Make networks, loss, buffer and optimiser."""
        self.env, self.settings = env, settings
        networks, devices = env.env.num_networks, env.env.world.num_devices
        width = env.observation_spec["agents", "observation"].shape[-1]
        servers = env.env.world.num_servers
        body = {
            "n_agents": devices,
            "share_params": True,
            "depth": 2,
            "activation_class": torch.nn.ReLU,
        }
        logits = MultiAgentMLP(width, servers, centralised=False, num_cells=settings.hidden, **body)
        self.actor = ProbabilisticActor(
            TensorDictModule(logits, [("agents", "observation")], [("agents", "logits")]),
            spec=env.action_spec,
            in_keys={"logits": ("agents", "logits"), "mask": ("agents", "action_mask")},
            out_keys=[("agents", "action")],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
        )
        value = MultiAgentMLP(width, 1, centralised=True, num_cells=settings.hidden, **body)
        critic = TensorDictModule(value, [("agents", "observation")], [("agents", "state_value")])
        self.loss = ClipPPOLoss(
            self.actor, critic, clip_epsilon=0.2, entropy_coeff=0.001, normalize_advantage=False
        )
        self.loss.set_keys(
            reward=("agents", "reward"),
            action=("agents", "action"),
            value=("agents", "state_value"),
            done=("agents", "done"),
            terminated=("agents", "terminated"),
            sample_log_prob=("agents", "action_log_prob"),
        )
        self.loss.make_value_estimator(
            ValueEstimators.GAE, gamma=settings.discount, lmbda=settings.trace
        )
        frames = settings.rollout_slots * networks
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(frames),
            sampler=SamplerWithoutReplacement(),
            batch_size=frames // settings.num_minibatches,
        )
        self.optimiser = torch.optim.Adam(self.loss.parameters(), settings.learning_rate)
        self._state = env.reset()

    def collect(self) -> float:
        """Play a rollout and return the processor time that it took."""
        begin = time.process_time()
        with torch.no_grad():
            self._rollout = self.env.rollout(
                self.settings.rollout_slots,
                self.actor,
                tensordict=self._state,
                auto_reset=False,
                break_when_any_done=False,
            )
        last = self._rollout[:, -1]["next"].exclude("reward", ("agents", "reward"))
        last["_reset"] = last["done"].clone()
        self._state = self.env.maybe_reset(last) if bool(last["done"].any()) else last
        self._state = self._state.exclude("_reset")
        return time.process_time() - begin

    def update(self) -> float:
        """Improve on the rollout and return the processor time that it took."""
        begin = time.process_time()
        rollout, settings = self._rollout, self.settings
        shape = rollout["next", "agents", "reward"].shape
        for name in ("done", "terminated"):
            rollout["next", "agents", name] = rollout["next", name].unsqueeze(-2).expand(shape)
        with torch.no_grad():
            self.loss.value_estimator(
                rollout,
                params=self.loss.critic_network_params,
                target_params=self.loss.target_critic_network_params,
            )
        self.buffer.extend(rollout.reshape(-1))
        for _ in range(settings.epochs):
            for _ in range(settings.num_minibatches):
                losses = self.loss(self.buffer.sample())
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimiser.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_(self.loss.parameters(), 10.0)
                self.optimiser.step()
        return time.process_time() - begin
