"""The training environment: B networks in step, tensors in and out, episodes cut at the horizon.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from envs.action import Action, ControlConfig, illegal_server, to_decision
from envs.native_decision import NativeDecider, knows_control
from envs.native_observation import NativeObserver
from envs.observation import Observation, observe
from uara.errors import UserError
from uara.network import Decision, NetworkState, SlotOutcome
from uara.radio.bank import Split
from uara.world.world import World
from uara.young_fields import dump_without_defaults


class RewardConfig(BaseModel):
    """What a slot is worth; one reward for all devices of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normaliser_s: float | None = Field(
        None,
        gt=0,
        description="request-seconds that cost a reward of 1; null: slot_s times number of devices",
    )
    energy_weight: float = Field(0.0, ge=0, description="reward lost per joule of the devices")
    battery_weight: float = Field(
        0.0,
        ge=0,
        description="reward lost per device that spends all that its battery holds (joules spent "
        "over joules left, summed over devices); needs world.batteries",
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("battery_weight",))


@dataclass(frozen=True)
class Step:
    """What one slot brought to B networks."""

    observation: Observation  # to act on next; of a new episode where the last one ended
    final_observation: Observation  # before any reset; the same object when nothing ended
    reward: Tensor  # (B,)
    terminated: Tensor  # (B,) bool, the episode is drained; never without `drain`
    truncated: Tensor  # (B,) bool, cut by time: the value of final_observation goes on
    outcome: SlotOutcome
    decision: Decision
    illegal: Tensor  # (B, M) bool, the chosen server was out of reach and was replaced


class BatchedEnv:
    """Steps B networks at once; all randomness comes from a generator of its own.

    By default an episode is cut at the horizon, which is a truncation: requests are still alive.
    With `drain` it goes on without arrivals until every request is finished (a termination), or
    until `drain_slots` are over (a truncation).
    """

    def __init__(
        self,
        world: World,
        split: Split,
        control: ControlConfig,
        reward: RewardConfig,
        seed: int,
        *,
        drain: bool = False,
        auto_reset: bool = True,
        native: bool = False,
    ) -> None:
        """Take over a world; `reset` must follow.

        Args:
            world: its batch size is B; it must not be shared.
            split: worlds of the bank that episodes are drawn from.
            control: who makes which choice.
            reward: what a slot is worth.
            seed: of worlds and requests of the episodes.
            drain: play until all requests are finished.
            auto_reset: start a new episode in `step` where one ended; else the caller resets.
            native: observe, and where it knows world and control also step and decide, with
                compiled code, which equals torch to rounding and is faster.

        Raises:
            UserError: if the split holds no worlds, if batteries are weighted and there are none,
                or for `native` without a C compiler or with a physics that the compiled code does
                not know.
        """
        self.worlds = torch.as_tensor(world.bank.worlds(split), dtype=torch.long)
        if self.worlds.numel() == 0:
            raise UserError(
                f"split '{split}' of the channel bank holds no worlds; give it at least 1 and "
                "rebuild the bank"
            )
        if reward.battery_weight > 0 and world.config.batteries is None:
            raise UserError(
                f"reward.battery_weight is {reward.battery_weight:g} but the world has no "
                "batteries; set it to 0, or give the task's world batteries (batteries: {})"
            )
        self.world = world
        self.control = control
        self.reward_config = reward
        self.drain = drain
        self.auto_reset = auto_reset
        self.generator = torch.Generator().manual_seed(seed)
        config = world.config
        self.normaliser_s = reward.normaliser_s or config.slot_s * world.num_devices
        self.last_slot = config.horizon_slots + (config.drain_slots if drain else 0)
        self._native = NativeObserver.of(world.physics) if native else None
        self._decider: NativeDecider | None = None
        if native:
            world.compile()
            if knows_control(control):
                longest = world.physics.config.max_draft_length
                self._decider = NativeDecider.of(control, longest)
        self.state: NetworkState = world.state()

    @property
    def num_networks(self) -> int:
        """B."""
        return self.world.num_networks

    def reset(self, mask: Tensor | None = None, *, seed: int | None = None) -> Observation:
        """Start new episodes: a random world of the split with fresh requests.

        Args:
            mask: (B,) bool; the other networks go on untouched. None: all.
            seed: restart the generator first.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        size = (self.num_networks,)
        if mask is None:
            mask = torch.ones(size, dtype=torch.bool)
        # Drawn for all networks, so that the stream does not depend on which of them ended.
        pick = torch.randint(self.worlds.numel(), size, generator=self.generator)
        episode = torch.randint(2**62, size, generator=self.generator)
        self.world.reset(mask, self.worlds[pick], episode)
        return self._observe()

    def step(self, action: Action) -> Step:
        """Play one slot.

        Raises:
            UserError: if the action's heads are not those that the control config learns.
        """
        decision, illegal = self._decide(action)
        outcome = self.world.step(decision)
        is_over = self.world.progress.slot >= self.last_slot
        terminated = outcome.drained & self.drain
        truncated = is_over & ~terminated
        final = self._observe()
        ended = terminated | truncated
        return Step(
            observation=self.reset(ended) if self.auto_reset and bool(ended.any()) else final,
            final_observation=final,
            reward=self._reward(outcome),
            terminated=terminated,
            truncated=truncated,
            outcome=outcome,
            decision=decision,
            illegal=illegal,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on: generator and world."""
        return {"generator": self.generator.get_state(), "world": self.world.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Go back to a saved state and return its observation."""
        self.generator.set_state(state["generator"])
        self.world.load_state_dict(state["world"])
        return self._observe()

    def _decide(self, action: Action) -> tuple[Decision, Tensor]:
        """Complete an action; tell which choices of a server were illegal, (B, M) bool."""
        if self._decider is not None:
            return self._decider(action, self.state)
        physics = self.world.physics
        decision = to_decision(action, self.state, self.control, physics, self.generator)
        return decision, illegal_server(action, self.state)

    def _observe(self) -> Observation:
        self.state = self.world.state()
        if self._native is not None:
            return self._native(self.state)
        return observe(self.state, self.world.physics)

    def _reward(self, outcome: SlotOutcome) -> Tensor:
        """Compute minus alive seconds, weighted joules and weighted shares of batteries, (B,).

        By Little's law the alive seconds of a drained episode add up to the sum of E2E latencies.
        """
        config = self.reward_config
        energy_j = outcome.device_energy_j.sum(1)
        reward = -outcome.alive_s / self.normaliser_s - config.energy_weight * energy_j
        if config.battery_weight == 0:
            return reward
        assert outcome.battery_share is not None, "batteries are weighted but there are none"
        return reward - config.battery_weight * outcome.battery_share.sum(1)


@dataclass(frozen=True)
class EnvRecipe:
    """All that the views need to make environments of any batch size."""

    make_world: Callable[[int], World]  # number of networks -> a world of its own
    control: ControlConfig = field(default_factory=ControlConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    split: Split = "train"
    drain: bool = False
    native: bool = False

    def batched(self, num_networks: int, seed: int, *, auto_reset: bool = True) -> BatchedEnv:
        """Make an environment of B networks."""
        world = self.make_world(num_networks)
        return BatchedEnv(
            world,
            self.split,
            self.control,
            self.reward,
            seed,
            drain=self.drain,
            auto_reset=auto_reset,
            native=self.native,
        )
