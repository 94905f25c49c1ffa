"""The stable-baselines3 baselines: one controller per network, on the flat views; PPO.

Shape legend: B networks, M devices, E servers, F flat features.
"""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from envs.action import ControlConfig, to_decision
from envs.batched import BatchedEnv
from envs.observation import View, observe, schema
from uara.errors import UserError
from uara.files import whole_file
from uara.network import Controller, Decision, NetworkState, SlotOutcome
from uara.prediction import Physics

if TYPE_CHECKING:
    from envs.flat import FlatActions, FlatStyle
    from envs.vector import NetworkVecEnv

# stable-baselines3 and Gymnasium are loaded where they are used: they take seconds, and this module
# also holds a config that every command reads.

_MEMBER = "uara.json"  # our part of the zip; stable-baselines3 does not read it
_LOGGED = {
    "train/policy_gradient_loss": "train/policy_loss",
    "train/value_loss": "train/value_loss",
    "train/approx_kl": "train/approx_kl",
    "train/clip_fraction": "train/clip_fraction",
    "train/explained_variance": "train/explained_variance",
    "train/learning_rate": "train/learning_rate",
}


class Sb3PpoConfig(BaseModel):
    """PPO of stable-baselines3 with its own defaults where none is named here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sb3_ppo"] = Field("sb3_ppo", description="names the learner")
    rollout_slots: int = Field(64, gt=0, description="slots between updates")
    batch_size: int = Field(1024, gt=1, description="network slots per gradient step")
    epochs: int = Field(5, gt=0, description="passes over a rollout")
    learning_rate: float = Field(3e-4, gt=0, description="of Adam")
    discount: float = Field(0.98, gt=0, le=1, description="gamma, per slot")
    trace: float = Field(0.95, ge=0, le=1, description="lambda of the advantage estimate")
    entropy: float = Field(0.001, ge=0, description="weight of the summed entropy")
    hidden: int = Field(128, gt=0, description="width of both layers of actor and critic")
    levels: int = Field(5, ge=2, description="levels of a learned bandwidth or power")


class Sb3Learner:
    """Drives an algorithm of stable-baselines3 through the common loop.

    Resuming restores weights, optimisers and counters and begins new episodes (with an empty replay
    buffer, where there is one); stable-baselines3 draws from global generators, so the continuation
    is not bit for bit.
    """

    policy_suffix = ".zip"

    def __init__(
        self, kind: str, env: BatchedEnv, vector: NetworkVecEnv, model: Any, slots: int
    ) -> None:
        """Take over a model.

        Args:
            kind: of the learner's config.
            env: B networks; the learner is its only user.
            vector: the same as the model sees it.
            model: of stable-baselines3, made for `vector`.
            slots: between updates.
        """
        from stable_baselines3.common.callbacks import BaseCallback

        class Nothing(BaseCallback):
            """Satisfies the collection, which wants a callback."""

            def _on_step(self) -> bool:
                return True

        self.kind = kind
        self.env = env
        self.vector = vector
        self.model = model
        self.slots = slots
        self._callback = Nothing()
        self._callback.init_callback(model)

    @property
    def env_steps(self) -> int:
        """Network slots played so far."""
        return int(self.model.num_timesteps)

    def start(self) -> None:
        """Begin the first episodes."""
        # Learning for no step resets the environment and sets up the logger by the public way.
        self.model.learn(total_timesteps=0, reset_num_timesteps=False)

    def histograms(self) -> dict[str, Tensor]:
        """Return nothing: the choices stay inside the model."""
        return {}

    def controller(self) -> Controller:
        """Return the current policy as a controller that takes the most likely choices."""
        physics = self.env.world.physics
        return Sb3Controller(self.model, self.vector.actions, physics, name=self.kind)

    def save_policy(self, path: Path) -> None:
        """Write the model as stable-baselines3 does, with how to use it as one more member."""
        described = {
            "kind": self.kind,
            "control": self.env.control.model_dump(mode="json"),
            "schema": schema().to_dict(),
            "num_devices": self.env.world.num_devices,
            "num_servers": self.env.world.num_servers,
            "max_draft_length": self.env.world.physics.config.max_draft_length,
            "levels": self.vector.actions.levels,
        }
        with whole_file(path) as temporary:
            self.model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(_MEMBER, json.dumps(described))

    def policy_content(self) -> dict[str, Any]:
        """Return nothing: the policy of this learner is its zip file."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers and counters."""
        return {"parameters": self.model.get_parameters(), "env_steps": self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore weights, optimisers and counters, and begin new episodes."""
        self.start()
        self.model.set_parameters(state["parameters"], device=self.model.device)
        self.model.num_timesteps = int(state["env_steps"])
        logging.getLogger(__name__).info("new episodes begin at step %d", self.env_steps)

    def rollout_metrics(self, reward: float) -> dict[str, float]:
        """Tell what a mean reward of a network and slot says."""
        metrics = {"rollout/reward": reward}
        weights = self.env.reward_config
        if weights.energy_weight == 0 and weights.battery_weight == 0:
            slot_s = self.env.world.config.slot_s
            metrics["rollout/alive_requests"] = -reward * self.env.normaliser_s / slot_s
        return metrics

    def logged(self, names: dict[str, str]) -> dict[str, float]:
        """Take the metrics of the last update, under our names, from the model's logger."""
        values = self.model.logger.name_to_value
        metrics = {ours: float(values[theirs]) for theirs, ours in names.items()}
        values.clear()
        return metrics


class Sb3PpoLearner(Sb3Learner):
    """PPO of stable-baselines3."""

    def __init__(
        self,
        config: Sb3PpoConfig,
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
        from stable_baselines3 import PPO

        from envs.vector import NetworkVecEnv

        vector = NetworkVecEnv(env, levels=config.levels)
        model = PPO(
            "MlpPolicy",
            vector,
            n_steps=config.rollout_slots,
            batch_size=config.batch_size,
            n_epochs=config.epochs,
            learning_rate=config.learning_rate,
            gamma=config.discount,
            gae_lambda=config.trace,
            ent_coef=config.entropy,
            policy_kwargs={"net_arch": [config.hidden, config.hidden]},
            seed=seed,
            device=device,
        )
        super().__init__(config.kind, env, vector, model, config.rollout_slots)

    def collect(self) -> dict[str, float]:
        """Play a rollout and return metrics rollout/..."""
        buffer = self.model.rollout_buffer
        self.model.collect_rollouts(self.vector, self._callback, buffer, self.slots)
        return self.rollout_metrics(float(buffer.rewards.mean()))

    def update(self, progress: float) -> dict[str, float]:
        """Learn from the rollout and return metrics train/...; rates are constant."""
        self.model.train()
        return self.logged(_LOGGED)


class Sb3Controller:
    """Decides with a stable-baselines3 model that sees the whole network."""

    observes = "network"

    def __init__(
        self,
        model: Any,
        actions: FlatActions,
        physics: Physics,
        *,
        name: str = "sb3_ppo",
        deterministic: bool = True,
    ) -> None:
        """Take over a model; `actions` reads its flat actions."""
        self.name = name
        self.model = model
        self.actions = actions
        self.physics = physics
        self.deterministic = deterministic
        self._generator = torch.Generator()

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Take the generator of the closed forms; a policy remembers nothing else."""
        self._generator = generator

    def decide(self, state: NetworkState) -> Decision:
        """Observe, choose, complete.

        Raises:
            UserError: if the network has other sizes than the one that the model was trained on.
        """
        from envs.flat import flatten_network

        given = (state.num_devices, state.num_servers)
        trained = (self.actions.num_devices, self.actions.num_servers)
        if given != trained:
            raise UserError(
                f"policy '{self.name}' was trained with {trained[0]} devices and {trained[1]} "
                f"servers, the network has {given[0]} and {given[1]}; use a mappo policy, which "
                "takes any number, or train this one again"
            )
        flat = flatten_network(observe(state, self.physics)).numpy()
        values, _ = self.model.predict(flat, deterministic=self.deterministic)
        action = self.actions.to_action(values)
        return to_decision(action, state, self.actions.control, self.physics, self._generator)

    def observe(self, outcome: SlotOutcome) -> None:
        """Ignore the outcome."""


def load_sb3_policy(
    path: Path, physics: Physics, *, name: str | None = None, deterministic: bool = True
) -> Sb3Controller:
    """Load a stable-baselines3 policy as a controller.

    stable-baselines3's own loader unpickles parts of the file; load only files that you trust.

    Raises:
        UserError: for a missing or foreign file or another observation schema.
    """
    from stable_baselines3 import PPO, SAC

    from envs.flat import FlatActions

    if not path.is_file():
        raise UserError(f"policy file '{path}' does not exist; give a file that `uara train` wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read(_MEMBER))
        control = ControlConfig.model_validate(described["control"])
        # Files that say no kind are older than the second one.
        kind = described.get("kind", "sb3_ppo")
        algorithm = {"sb3_ppo": PPO, "sb3_sac": SAC}[kind]
        style: FlatStyle = "discrete" if kind == "sb3_ppo" else "box"
        actions = FlatActions(
            control,
            int(described["num_devices"]),
            int(described["num_servers"]),
            int(described["max_draft_length"]),
            style,
            int(described["levels"]),
        )
    except (zipfile.BadZipFile, KeyError, ValueError, ValidationError) as error:
        raise UserError(
            f"'{path}' is no policy of this program ({type(error).__name__}); give a file that "
            "`uara train` wrote"
        ) from error
    if described["schema"] != schema().to_dict():
        raise UserError(
            f"'{path}' was trained on another observation schema than version "
            f"{schema().version} of this program; train the policy again"
        )
    model = algorithm.load(path, device="cpu")
    return Sb3Controller(model, actions, physics, name=name or kind, deterministic=deterministic)
