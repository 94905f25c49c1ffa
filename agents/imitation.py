"""Copies a controller: what it decides, written as the action that a policy would have chosen.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.heads import UNIT_MARGIN
from agents.on_policy import ImitateConfig
from envs.action import WEIGHT_SPAN, Action, Head
from envs.batched import BatchedEnv, Step
from uara.control.registry import make_controller
from uara.network import Decision, NetworkState
from uara.serving.batching import sum_by_server

LEAST_SHARE = 1e-6  # of a band, for devices that were given nothing


def action_of(decision: Decision, state: NetworkState, heads: tuple[Head, ...]) -> Action:
    """Write a decision as the action of learned heads that comes nearest to it.

    Weights of a band are known up to a factor; they are set around the middle of each server's.
    What devices without a request are told means nothing.

    Args:
        decision: of a controller.
        state: what it decided on.
        heads: the learned ones.
    """
    chosen: dict[str, Tensor] = {}
    server = decision.server.clamp_min(0)
    if "server" in heads:
        chosen["server"] = server
    if "bandwidth" in heads:
        band_hz = state.uplink_bandwidth_hz.gather(1, server)
        weight = (decision.bandwidth_hz / band_hz).clamp_min(LEAST_SHARE).log()
        active = state.has_request.to(weight.dtype)
        servers = state.num_servers
        count = sum_by_server(active, server, servers).clamp_min(1)
        middle = (sum_by_server(weight * active, server, servers) / count).gather(1, server)
        chosen["bandwidth"] = _inside(0.5 + (weight - middle) / (2 * WEIGHT_SPAN))
    if "power" in heads:
        chosen["power"] = _inside(decision.power_w / state.power_max_w)
    if "draft_length" in heads:
        chosen["draft_length"] = decision.draft_length
    return Action(**chosen)


class Teacher:
    """Drives some of the networks and says in all of them what it would do.

    It begins anew with every rollout, so that nothing of it has to be stored with a training.
    """

    def __init__(self, config: ImitateConfig, env: BatchedEnv) -> None:
        """Make the controller.

        Args:
            config: which one.
            env: that the learner plays; rules for what the controller's name leaves open are its.

        Raises:
            UserError: if the controller is unknown.
        """
        physics = env.world.physics
        allocation = env.control.allocation()
        self.controller = make_controller(config.controller, allocation, physics, config.parameters)
        self.heads = env.control.learned
        networks = env.num_networks
        self._leads = torch.arange(networks) < round(config.teacher_share * networks)

    def begin(self) -> None:
        """Forget everything; draws of the controller repeat."""
        self._generator = torch.Generator().manual_seed(0)
        self.controller.reset(torch.ones_like(self._leads), self._generator)

    def lead(self, state: NetworkState, action: Action) -> tuple[Action, Action]:
        """Say what the controller would do, and what is played where it drives some networks.

        Args:
            state: what is known.
            action: of the policy.

        Returns:
            The controller's action and the one to play.
        """
        label = action_of(self.controller.decide(state), state, self.heads)
        leads = self._leads.unsqueeze(1)
        played = {h: torch.where(leads, getattr(label, h), getattr(action, h)) for h in self.heads}
        return label, Action(**played)

    def follow(self, step: Step) -> None:
        """Take in what the slot brought."""
        self.controller.observe(step.outcome)
        ended = step.terminated | step.truncated
        if bool(ended.any()):
            self.controller.reset(ended, self._generator)


def _inside(share: Tensor) -> Tensor:
    """Keep shares where a Beta law has a density."""
    return share.clamp(UNIT_MARGIN, 1 - UNIT_MARGIN).to(torch.float32)
