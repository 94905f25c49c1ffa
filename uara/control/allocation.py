"""Bandwidth, power, draft length, mode and compute by rules, once the servers are chosen.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.compute_share import COMPUTE_RULES
from uara.control.draft_length import argmin, fixed, log_threshold
from uara.control.mode import BEST, best_mode, best_mode_and_length, in_mode
from uara.control.power import POWER_RULES, PowerConfig
from uara.control.ucb import UcbConfig
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.serving.modes import MODE_INDEX

BandwidthName = Literal[
    "equal",
    "demand",
    "square_root",
    "least_sum",
    "equal_finish",
    "goodput",
    "proportional_fair",
    "joint_min_max",
]
PowerName = Literal["full", "open_loop", "min_energy_deadline", "wmmse"]
LengthName = Literal["argmin", "log_threshold", "ucb"]
ModeName = Literal["task", "sd", "server_ar", "device_only", "psd", "async", "best_mode"]
ComputeName = Literal[
    "undecided", "equal_compute", "square_root_compute", "proportional_compute", "joint_min_max"
]
JOINT = "joint_min_max"


class AllocationConfig(BaseModel):
    """Which rule sets what; the same for every row of a table that does not name its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: BandwidthName = Field(
        "square_root", description="split of a server's band among its devices"
    )
    power: PowerName = Field("full", description="transmit power")
    draft_length: Annotated[int, Field(ge=0)] | LengthName = Field(
        "argmin",
        description="a fixed length; argmin: of least predicted time per token; log_threshold: in "
        "closed form from the round's delay; ucb: learned per device",
    )
    search_length: int = Field(
        4, gt=0, description="length that association rules assume where none is fixed"
    )
    mode: ModeName = Field(
        "task",
        description="serving mode of all; task: that of the physics; best_mode: per device the "
        "lossless one of least predicted time per token",
    )
    compute_share: ComputeName = Field(
        "undecided",
        description="shares of fluid servers; undecided: by the root of the pass, as they do alone",
    )
    power_control: PowerConfig = Field(PowerConfig(), description="parameters of power rules")
    ucb: UcbConfig = Field(UcbConfig(), description="parameters of the length rule `ucb`")

    @model_validator(mode="after")
    def _check_joint(self) -> AllocationConfig:
        if (self.bandwidth == JOINT) != (self.compute_share == JOINT):
            raise ValueError(
                f"bandwidth is {self.bandwidth} and compute_share is {self.compute_share}, but "
                f"{JOINT} splits both together; give it for both or for neither"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Fields younger than the first stored hashes stay out of them while they change nothing.
        content: dict[str, Any] = dump(self)
        for name in ("mode", "compute_share", "power_control", "ucb"):
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content


@dataclass(frozen=True)
class Allocator:
    """Completes a choice of servers to a decision.

    Raises:
        UserError: if the fixed draft length is longer than the physics allow, or compute is to be
            divided where servers batch.
    """

    config: AllocationConfig
    physics: Physics

    def __post_init__(self) -> None:
        length, longest = self.config.draft_length, self.physics.config.max_draft_length
        if isinstance(length, int) and length > longest:
            raise UserError(
                f"draft_length is {length} but physics.max_draft_length allows at most {longest}; "
                "shorten the one or raise the other"
            )
        service, share = self.physics.config.service, self.config.compute_share
        if share != "undecided" and service != "fluid":
            raise UserError(
                f"compute_share is {share} but physics.service is {service}, whose servers have no "
                "shares; set physics.service to fluid or leave compute_share undecided"
            )

    @cached_property
    def served(self) -> Physics:
        """The physics in the mode that the rules decide for; the task's where one is searched."""
        return in_mode(self.physics, self.config.mode) if self.sets_mode else self.physics

    @property
    def sets_mode(self) -> bool:
        """Whether all devices get one mode that is not the task's."""
        return self.config.mode not in ("task", BEST, self.physics.config.mode)

    def quick(self, state: NetworkState, server: Tensor) -> Decision:
        """Allocate with the draft length taken as given; cheap enough for inner loops.

        Powers that are iterated count as full, compute shares as undecided, and modes that are to
        be chosen as the task's.
        """
        rule, longest = self.config.draft_length, self.physics.config.max_draft_length
        search = min(self.config.search_length, longest)
        length = fixed(state, rule if isinstance(rule, int) else search)
        power = "full" if self.config.power == "wmmse" else self.config.power
        return self._with_length(state, server, length, power)

    def __call__(
        self, state: NetworkState, server: Tensor, length: Tensor | None = None
    ) -> Decision:
        """Allocate everything for chosen servers.

        Args:
            state: B networks.
            server: (B, M) long.
            length: (B, M) long, of a rule with a memory of its own; None: by the config's rule,
                where `ucb`, which has no memory here, gives the search length.
        """
        decision, config, mode = self.quick(state, server), self.config, None
        rule = config.draft_length if length is None else None
        if rule == "argmin" and config.mode == BEST:
            mode, length = best_mode_and_length(state, decision, self.physics)
        elif rule == "argmin":
            length = argmin(state, decision, self.served)
        elif rule == "log_threshold":
            length = log_threshold(state, decision, self.served)
        if length is not None or config.power == "wmmse":
            length = decision.draft_length if length is None else length
            decision = self._with_length(state, server, length, config.power)
        if config.mode == BEST:
            mode = best_mode(state, decision, self.physics) if mode is None else mode
            decision = replace(decision, mode=mode)
        if config.compute_share == "undecided":
            return decision
        share = COMPUTE_RULES[config.compute_share](state, decision, self.served)
        return replace(decision, compute_share=share)

    def _with_length(
        self, state: NetworkState, server: Tensor, length: Tensor, power: PowerName
    ) -> Decision:
        """Set bandwidth and power, which the length shapes, and a mode that all share."""
        mode = None
        if self.sets_mode:
            mode = torch.full_like(server, MODE_INDEX[self.config.mode])
        decision = Decision(
            server=server,
            bandwidth_hz=BANDWIDTH_RULES[self.config.bandwidth](state, server, length, self.served),
            power_w=state.power_max_w,
            draft_length=length,
            mode=mode,
        )
        if power == "full":
            return decision
        watts = POWER_RULES[power](state, decision, self.served, self.config.power_control)
        return replace(decision, power_w=watts)
