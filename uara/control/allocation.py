"""Bandwidth, power and draft length by closed forms, once the servers are chosen.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.draft_length import argmin, fixed
from uara.control.power import POWER_RULES
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics


class AllocationConfig(BaseModel):
    """Which closed form sets what; the same for every row of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: Literal["equal", "square_root"] = Field(
        "square_root", description="split of a server's band among its devices"
    )
    power: Literal["full"] = Field("full", description="transmit power")
    draft_length: Annotated[int, Field(ge=0)] | Literal["argmin"] = Field(
        "argmin", description="a fixed length, or the one of least predicted time per token"
    )
    search_length: int = Field(
        4, gt=0, description="length that association rules assume where the rule is `argmin`"
    )


@dataclass(frozen=True)
class Allocator:
    """Completes a choice of servers to a decision.

    Raises:
        UserError: if the fixed draft length is longer than the physics allow.
    """

    config: AllocationConfig
    physics: Physics

    def __post_init__(self) -> None:
        length, longest = self.config.draft_length, self.physics.config.max_draft_length
        if length != "argmin" and length > longest:
            raise UserError(
                f"draft_length is {length} but physics.max_draft_length allows at most {longest}; "
                "shorten the one or raise the other"
            )

    def quick(self, state: NetworkState, server: Tensor) -> Decision:
        """Allocate with the draft length taken as given; cheap enough for inner loops."""
        rule = self.config.draft_length
        length = fixed(state, self.config.search_length if rule == "argmin" else rule)
        return self._with_length(state, server, length)

    def __call__(self, state: NetworkState, server: Tensor) -> Decision:
        """Allocate bandwidth, power and draft length for chosen servers (B, M) long."""
        decision = self.quick(state, server)
        if self.config.draft_length != "argmin":
            return decision
        return self._with_length(state, server, argmin(state, decision, self.physics))

    def _with_length(self, state: NetworkState, server: Tensor, length: Tensor) -> Decision:
        bandwidth = BANDWIDTH_RULES[self.config.bandwidth]
        return Decision(
            server=server,
            bandwidth_hz=bandwidth(state, server, length, self.physics),
            power_w=POWER_RULES[self.config.power](state),
            draft_length=length,
        )
