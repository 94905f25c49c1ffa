"""The decentralised rival: each phone alone goes where it expects to be done soonest.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.allocation import AllocationConfig
from uara.control.rules import RuleController
from uara.local_prediction import predict_locally, server_load
from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics


class LocalGreedyConfig(BaseModel):
    """How a phone weighs its own time, harm to others and changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harm_weight: float = Field(
        1.0, ge=0, description="weight of the time that its prefill takes from others; 0: selfish"
    )
    switching_margin_s: float = Field(
        10.0,
        ge=0,
        description="what a running request must gain by a change of server; small margins let all "
        "phones follow each other from server to server",
    )


class LocalGreedy:
    """Lets every device choose its server by itself, all at once, in every slot.

    A device knows its own links, its own request and what servers broadcast of their load, so the
    controller is decentralised: it has the information of a policy with the view "device". The time
    at a server is that of `uara.local_prediction`. Bandwidth, power and draft length are the
    server's to set, by the rules of the allocation.
    """

    name = "local_greedy"
    observes = "device"

    def __init__(
        self,
        allocation: AllocationConfig,
        physics: Physics,
        config: LocalGreedyConfig | None = None,
    ) -> None:
        """Take over options; the defaults where there are none."""
        self.config = LocalGreedyConfig() if config is None else config
        self.physics = physics
        self._rest = RuleController("max_gain", allocation, physics)  # asked for no server

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Forget what the rules for the rest remember."""
        self._rest.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        """Price every pair alone, choose, let the servers allocate."""
        load = server_load(state)
        times = predict_locally(state, load, self.physics)
        cost = times.remaining_s + self.config.harm_weight * times.inflicted_s
        cost = cost - self.config.switching_margin_s * load.serves
        server = torch.where(state.reachable, cost, torch.inf).argmin(-1)
        return self._rest.complete(state, server)

    def observe(self, outcome: SlotOutcome) -> None:
        """Let the rules for the rest learn from it."""
        self._rest.observe(outcome)
