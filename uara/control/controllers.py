"""Controllers with parameters of their own: their names, and what a task sets of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from uara.control.allocation import AllocationConfig
from uara.control.association import AssociationConfig
from uara.control.completion import CompletionConfig, CompletionGreedy
from uara.control.joint import JointController
from uara.control.local_greedy import LocalGreedy, LocalGreedyConfig
from uara.control.oracle import OneSlotOracle
from uara.network import Controller
from uara.prediction import Physics
from uara.young_fields import dump_without_defaults


class ControllersConfig(BaseModel):
    """Parameters by controller, and those of association rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    association: AssociationConfig = Field(
        AssociationConfig(), description="biases, quotas, sweeps and margins of association rules"
    )
    completion_greedy: CompletionConfig = Field(
        CompletionConfig(), description="least completion time, with what a change of server costs"
    )
    local_greedy: LocalGreedyConfig = Field(
        LocalGreedyConfig(), description="each phone alone, by its own links and the broadcasts"
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("local_greedy",))


def completion_greedy(
    allocation: AllocationConfig, physics: Physics, config: ControllersConfig
) -> Controller:
    """Make the controller of least completion time."""
    return CompletionGreedy(allocation, physics, config.completion_greedy)


def local_greedy(
    allocation: AllocationConfig, physics: Physics, config: ControllersConfig
) -> Controller:
    """Make the controller in which each phone decides alone."""
    return LocalGreedy(allocation, physics, config.local_greedy)


def oracle(allocation: AllocationConfig, physics: Physics, config: ControllersConfig) -> Controller:
    """Make the one-slot oracle."""
    return OneSlotOracle(allocation, physics)


def joint_greedy(
    allocation: AllocationConfig, physics: Physics, config: ControllersConfig
) -> Controller:
    """Take greedy_latency's servers, with the best split of bands and lengths for them."""
    return JointController("joint_greedy", "greedy_latency", allocation, physics, descends=False)


def joint_moves(
    allocation: AllocationConfig, physics: Physics, config: ControllersConfig
) -> Controller:
    """Start as tma_moves and change servers, split and lengths together."""
    return JointController("joint_moves", "tma_moves", allocation, physics, descends=True)


# Controllers that choose servers in a way of their own; rules of the other kinds shape the rest.
CONTROLLERS: dict[str, Callable[[AllocationConfig, Physics, ControllersConfig], Controller]] = {
    "completion_greedy": completion_greedy,
    "local_greedy": local_greedy,
    "joint_greedy": joint_greedy,
    "joint_moves": joint_moves,
    "oracle": oracle,
}
