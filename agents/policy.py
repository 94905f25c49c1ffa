"""Trained policies as controllers, and the small files that hold them.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from agents import checkpoint
from agents.network import Actor, FeatureSizes, NetworkConfig
from envs.action import ControlConfig, to_decision
from envs.observation import View, observe, schema
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState, SlotOutcome
from uara.prediction import Physics


class PolicyController:
    """Decides with a trained actor; the closed forms complete what it does not choose."""

    def __init__(
        self,
        actor: Actor,
        control: ControlConfig,
        physics: Physics,
        *,
        name: str = "mappo",
        deterministic: bool = True,
    ) -> None:
        """Take over an actor.

        Args:
            actor: its heads are those that `control` learns.
            control: who makes which choice.
            physics: for observations and closed forms.
            name: row of a table.
            deterministic: the most likely choice and the mean of a share, else draws.
        """
        self.name = name
        self.observes: str = actor.view
        self.actor = actor
        self.control = control
        self.physics = physics
        self.deterministic = deterministic
        self._generator = torch.Generator()

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Take the generator that actions are drawn from; a policy remembers nothing else."""
        self._generator = generator

    @torch.no_grad()
    def decide(self, state: NetworkState) -> Decision:
        """Observe, choose, complete."""
        sample = self.actor.act(
            observe(state, self.physics), None if self.deterministic else self._generator
        )
        return to_decision(sample.action, state, self.control, self.physics, self._generator)

    def observe(self, outcome: SlotOutcome) -> None:
        """Ignore the outcome."""


def policy_content(
    kind: str, actor: Actor, network: NetworkConfig, control: ControlConfig, max_draft_length: int
) -> dict[str, Any]:
    """Collect what a policy file holds beside its stamp: weights and how to build the actor."""
    return {
        "kind": kind,
        "view": actor.view,
        "network": network.model_dump_json(),
        "control": control.model_dump_json(),
        "max_draft_length": max_draft_length,
        # Copies: a later step of the optimiser must not change what was collected.
        "actor": {key: value.detach().clone() for key, value in actor.state_dict().items()},
    }


def load_policy(
    path: Path | str, physics: Physics, *, name: str | None = None, deterministic: bool = True
) -> Controller:
    """Load a trained policy as a controller.

    Args:
        path: a policy file or a whole checkpoint (.pt), or a stable-baselines3 policy (.zip).
        physics: of the task that it shall control.
        name: row of a table; the kind of learner by default.
        deterministic: the most likely choice and the mean of a share, else draws.

    Raises:
        UserError: for a missing or foreign file, another format or schema, or a policy that drafts
            other lengths than the task allows.
    """
    path = Path(path)
    if path.suffix == ".zip":
        from agents.sb3 import load_sb3_policy

        return load_sb3_policy(path, physics, name=name, deterministic=deterministic)
    content = checkpoint.load(path)
    try:
        network = NetworkConfig.model_validate_json(content["network"])
        control = ControlConfig.model_validate_json(content["control"])
        length, view = int(content["max_draft_length"]), content["view"]
        kind = str(content["kind"])
        actor = build_actor(network, control, view, length)
        actor.load_state_dict(content["actor"])
    except (KeyError, ValidationError, RuntimeError) as error:
        raise UserError(
            f"'{path}' holds no complete policy ({type(error).__name__}); train the policy again"
        ) from error
    allowed = physics.config.max_draft_length
    if control.draft_length == "learned" and length != allowed:
        raise UserError(
            f"'{path}' chooses draft lengths up to {length}, the task allows up to {allowed}; "
            f"set physics.max_draft_length to {length} or train the policy again"
        )
    return PolicyController(
        actor.eval(), control, physics, name=name or kind, deterministic=deterministic
    )


def build_actor(
    network: NetworkConfig, control: ControlConfig, view: View, max_draft_length: int
) -> Actor:
    """Make an untrained actor for the observations of this program."""
    sizes = FeatureSizes.of(schema())
    return Actor(sizes, network, control.learned, view, max_draft_length)
