"""Controllers by name: rules of several kinds, joined by '+'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from uara.control.allocation import (
    JOINT,
    AllocationConfig,
    ComputeName,
    LengthName,
    ModeName,
)
from uara.control.association import ASSOCIATION_RULES
from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.controllers import CONTROLLERS, ControllersConfig
from uara.control.power import POWER_RULES
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState, SlotOutcome
from uara.prediction import Physics

# Rules by the field of `AllocationConfig` that they set.
RULES: dict[str, tuple[str, ...]] = {
    "bandwidth": tuple(BANDWIDTH_RULES),
    "power": tuple(POWER_RULES),
    "draft_length": get_args(LengthName),
    "mode": tuple(name for name in get_args(ModeName) if name != "task"),
    "compute_share": tuple(name for name in get_args(ComputeName) if name != "undecided"),
}


def make_controller(
    name: str,
    allocation: AllocationConfig,
    physics: Physics,
    parameters: ControllersConfig | None = None,
) -> Controller:
    """Make the controller of a name such as `greedy_latency+equal_finish+wmmse+argmin`.

    One part names who chooses the servers; the others, in any order, each a rule of another kind
    (a number is a fixed draft length). What is not named is as `allocation` has it.

    Args:
        name: parts joined by '+'.
        allocation: rules and parameters for what the name leaves open.
        physics: link, codec, mode, batching.
        parameters: of controllers and association rules; the defaults where there are none.

    Raises:
        UserError: if a part is unknown, a kind is named twice, nobody chooses the servers, or the
            parts do not go together.
    """
    chooser, allocation = read_name(name, allocation)
    parameters = ControllersConfig() if parameters is None else parameters
    if chooser in ASSOCIATION_RULES:
        return RuleController(chooser, allocation, physics, name, parameters.association)
    controller = CONTROLLERS[chooser](allocation, physics, parameters)
    return controller if controller.name == name else _Renamed(name, controller)


def read_name(name: str, allocation: AllocationConfig) -> tuple[str, AllocationConfig]:
    """Take a controller's name apart: who chooses the servers, and the rules for the rest.

    Args:
        name: parts joined by '+'.
        allocation: rules and parameters for what the name leaves open.

    Raises:
        UserError: as `make_controller`.
    """
    servers: list[str] = []
    named: dict[str, Any] = {}
    for part in name.split("+"):
        kinds = _kinds(part)
        if not kinds:
            raise UserError(
                f"controller '{name}': '{part}' is unknown; join names with '+', one each of "
                f"{_allowed()}"
            )
        for kind in kinds:
            if kind in named or (kind == "servers" and servers):
                first = servers[0] if kind == "servers" else named[kind]
                raise UserError(
                    f"controller '{name}': '{first}' and '{part}' are both of kind {kind}; drop one"
                )
            if kind == "servers":
                servers.append(part)
            else:
                named[kind] = int(part) if part.isdecimal() else part
    if not servers:
        raise UserError(
            f"controller '{name}' does not say who chooses the servers; add one of "
            f"{', '.join(_choosers())}"
        )
    return servers[0], _with_rules(name, allocation, named)


def _with_rules(name: str, allocation: AllocationConfig, named: dict[str, Any]) -> AllocationConfig:
    """Replace the named rules; what is left of a joint rule goes with its other half."""
    fields = {field: getattr(allocation, field) for field in type(allocation).model_fields}
    if JOINT in (fields["bandwidth"], fields["compute_share"]):
        if "bandwidth" in named and "compute_share" not in named:
            fields["compute_share"] = "undecided"
        elif "compute_share" in named and "bandwidth" not in named:
            fields["bandwidth"] = AllocationConfig().bandwidth
    try:
        return AllocationConfig.model_validate(fields | named)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"controller '{name}': {reason}") from error


def _choosers() -> tuple[str, ...]:
    return (*ASSOCIATION_RULES, *CONTROLLERS)


def _kinds(part: str) -> list[str]:
    """Name the kinds of a part; the joint rule is of two."""
    kinds = ["servers"] if part in _choosers() else []
    kinds += [kind for kind, rules in RULES.items() if part in rules]
    return kinds or (["draft_length"] if part.isdecimal() else [])


def _allowed() -> str:
    kinds = {"servers": _choosers(), **RULES}
    kinds["draft_length"] = (*kinds["draft_length"], "a number")
    return "; ".join(f"{kind}: {', '.join(rules)}" for kind, rules in kinds.items())


@dataclass(frozen=True)
class _Renamed:
    """A controller under the name that it was asked for by."""

    name: str
    controller: Controller

    @property
    def observes(self) -> str:
        """What the controller observes."""
        return self.controller.observes

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Reset the controller."""
        self.controller.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        """Let the controller decide."""
        return self.controller.decide(state)

    def observe(self, outcome: SlotOutcome) -> None:
        """Pass the outcome on."""
        self.controller.observe(outcome)
