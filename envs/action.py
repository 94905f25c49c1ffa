"""From actions to decisions: each of the four choices is learned or made by a rule.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES, keep_or
from uara.control.bandwidth import BANDWIDTH_RULES, split_band
from uara.control.draft_length import argmin, fixed, log_threshold
from uara.control.power import POWER_RULES, PowerConfig
from uara.errors import UserError
from uara.network import Decision, NetworkState
from uara.prediction import Physics

Head = Literal["server", "bandwidth", "power", "draft_length"]

WEIGHT_SPAN = 3.0  # a device at u = 1 gets exp(2 * 3) = 400 times the band of one at u = 0


class ControlConfig(BaseModel):
    """Who makes which choice: the learner or a rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    association: str = Field(
        "learned", description="learned, or a rule of uara.control.association"
    )
    may_move: bool = Field(
        True,
        description="whether a learned association may move a running request; rules decide "
        "for themselves",
    )
    bandwidth: Literal[
        "learned",
        "equal",
        "demand",
        "square_root",
        "least_sum",
        "equal_finish",
        "goodput",
        "proportional_fair",
    ] = Field("square_root", description="split of a server's band among its devices")
    power: Literal["learned", "full", "open_loop", "min_energy_deadline", "wmmse"] = Field(
        "full", description="transmit power"
    )
    draft_length: int | Literal["learned", "argmin", "log_threshold"] = Field(
        "argmin",
        description="learned, least predicted time per token, its closed form, or a fixed length",
    )
    search_length: int = Field(
        4, gt=0, description="length that rules assume where another length is not known yet"
    )

    @field_validator("association")
    @classmethod
    def _check_association(cls, name: str) -> str:
        if name != "learned" and name not in ASSOCIATION_RULES:
            raise ValueError(
                f"association '{name}' is unknown; allowed: learned, {', '.join(ASSOCIATION_RULES)}"
            )
        return name

    @field_validator("draft_length")
    @classmethod
    def _check_draft_length(cls, length: int | str) -> int | str:
        if isinstance(length, int) and length < 0:
            raise ValueError(f"draft_length is {length}; give 0 (server decodes) or more")
        return length

    @property
    def learned(self) -> tuple[Head, ...]:
        """List the heads that are learned, in the order of `Action`."""
        choices: dict[Head, object] = {
            "server": self.association,
            "bandwidth": self.bandwidth,
            "power": self.power,
            "draft_length": self.draft_length,
        }
        return tuple(head for head, choice in choices.items() if choice == "learned")

    def allocation(self) -> AllocationConfig:
        """Name the closed forms that rules reckon with; learned choices count as the default."""
        default = AllocationConfig()
        return AllocationConfig(
            bandwidth=default.bandwidth if self.bandwidth == "learned" else self.bandwidth,
            power=default.power if self.power == "learned" else self.power,
            draft_length=(
                default.draft_length if self.draft_length == "learned" else self.draft_length
            ),
            search_length=self.search_length,
        )


@dataclass(frozen=True)
class Action:
    """What a learner chose; None for what a rule decides."""

    server: Tensor | None = None  # (B, M) long
    bandwidth: Tensor | None = None  # (B, M) in [0, 1]
    power: Tensor | None = None  # (B, M) in [0, 1]
    draft_length: Tensor | None = None  # (B, M) long

    def to(self, device: torch.device) -> Action:
        """Move everything to a device; what is there already is not copied."""
        return Action(**{k: v.to(device) for k, v in vars(self).items() if v is not None})


def illegal_server(action: Action, state: NetworkState) -> Tensor:
    """Find the devices with a request whose chosen server is out of reach or none, (B, M) bool."""
    if action.server is None:
        return torch.zeros_like(state.has_request)
    return state.has_request & ~_is_legal(action.server, state)


def to_decision(
    action: Action,
    state: NetworkState,
    control: ControlConfig,
    physics: Physics,
    generator: torch.Generator | None = None,
) -> Decision:
    """Complete an action to a decision; shares always respect the budgets.

    A server out of reach becomes the strongest one in reach (`illegal_server` counts them). The
    band of a server is split in proportion to exp(3 (2u - 1)) among its devices with a request; the
    power is u times the limit.

    Args:
        action: exactly the heads that `control` names as learned.
        state: what is known.
        control: who makes which choice.
        physics: for the closed forms.
        generator: for the association rule "random".

    Raises:
        UserError: if the action lacks a learned head, brings one that a rule decides, or if the
            rule "random" has no generator.
    """
    check_heads(action, control)
    server = _server(action, state, control, physics, generator)
    if control.draft_length in ("argmin", "log_threshold"):
        length = fixed(state, min(control.search_length, physics.config.max_draft_length))
    elif action.draft_length is not None:
        length = action.draft_length.clamp(0, physics.config.max_draft_length)
    else:
        length = fixed(state, int(control.draft_length))
    if control.draft_length in ("argmin", "log_threshold"):
        # Searched at full power where powers are iterated, as controllers do.
        quick = (
            control.model_copy(update={"power": "full"}) if control.power == "wmmse" else control
        )
        decision = _with_length(action, state, quick, physics, server, length)
        search = argmin if control.draft_length == "argmin" else log_threshold
        length = search(state, decision, physics)
    return _with_length(action, state, control, physics, server, length)


def check_heads(action: Action, control: ControlConfig) -> None:
    """Refuse an action whose heads are not those of the configuration.

    Raises:
        UserError: if it lacks a learned head or brings one that a rule decides.
    """
    heads: tuple[Head, ...] = ("server", "bandwidth", "power", "draft_length")
    given = tuple(head for head in heads if getattr(action, head) is not None)
    if given != control.learned:
        raise UserError(
            f"the action brings {', '.join(given) or 'nothing'}, the control config learns "
            f"{', '.join(control.learned) or 'nothing'}; give exactly the learned heads"
        )


def _is_legal(server: Tensor, state: NetworkState) -> Tensor:
    """Tell whether a choice is a server in reach, (B, M) bool."""
    inside = server.clamp(0, state.num_servers - 1)
    in_reach = state.reachable.gather(2, inside.unsqueeze(-1)).squeeze(-1)
    return in_reach & (server == inside)


def _server(
    action: Action,
    state: NetworkState,
    control: ControlConfig,
    physics: Physics,
    generator: torch.Generator | None,
) -> Tensor:
    """Take the chosen servers, or those of the rule, (B, M) long."""
    if action.server is not None:
        astray = (~_is_legal(action.server, state)).nonzero(as_tuple=True)
        in_reach = torch.where(state.reachable[astray], state.gain[astray], -torch.inf)
        server = action.server.index_put(astray, in_reach.argmax(-1))
        return server if control.may_move else keep_or(state, server)
    if generator is None:
        if control.association == "random":
            raise UserError("association 'random' needs a generator; give a torch.Generator")
        generator = torch.Generator()
    allocator = Allocator(control.allocation(), physics)
    return ASSOCIATION_RULES[control.association](state, allocator, generator)


def _with_length(
    action: Action,
    state: NetworkState,
    control: ControlConfig,
    physics: Physics,
    server: Tensor,
    length: Tensor,
) -> Decision:
    """Complete servers and lengths by bandwidth and power."""
    bandwidth_hz = _bandwidth_hz(action, state, control, physics, server, length)
    decision = Decision(server, bandwidth_hz, state.power_max_w, length)
    if control.power == "full":
        return decision
    return replace(decision, power_w=_power_w(action, state, control, physics, decision))


def _bandwidth_hz(
    action: Action,
    state: NetworkState,
    control: ControlConfig,
    physics: Physics,
    server: Tensor,
    length: Tensor,
) -> Tensor:
    """Split the bands, (B, M) hertz."""
    if action.bandwidth is None:
        return BANDWIDTH_RULES[control.bandwidth](state, server, length, physics)
    share = action.bandwidth.to(state.gain.dtype).clamp(0, 1)
    weight = torch.exp(WEIGHT_SPAN * (2 * share - 1)) * state.has_request
    return split_band(weight, state, server)


def _power_w(
    action: Action,
    state: NetworkState,
    control: ControlConfig,
    physics: Physics,
    decision: Decision,
) -> Tensor:
    """Set the transmit power, (B, M) watt."""
    if action.power is None:
        return POWER_RULES[control.power](state, decision, physics, PowerConfig())
    return action.power.to(state.gain.dtype).clamp(0, 1) * state.power_max_w
