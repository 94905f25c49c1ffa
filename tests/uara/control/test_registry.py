"""Controllers by name: what a name makes, and what is said of one that makes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.control.allocation import AllocationConfig
from uara.control.controllers import CONTROLLERS, ControllersConfig
from uara.control.registry import make_controller, read_name
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Controller, NetworkState
from uara.prediction import Physics, PhysicsConfig

MakeState = Callable[..., NetworkState]
CONFIG = AllocationConfig()


def test_parts_of_a_name_set_the_rules_of_their_kinds() -> None:
    chooser, rules = read_name("greedy_latency+equal_finish+wmmse+psd+7", CONFIG)
    assert chooser == "greedy_latency"
    assert (rules.bandwidth, rules.power, rules.mode, rules.draft_length) == (
        "equal_finish", "wmmse", "psd", 7,
    )  # fmt: skip


def test_order_of_the_parts_does_not_matter() -> None:
    assert read_name("ucb+max_sinr+goodput", CONFIG) == read_name("max_sinr+goodput+ucb", CONFIG)


def test_what_a_name_leaves_open_is_as_configured() -> None:
    config = AllocationConfig(bandwidth="equal", draft_length=3)
    assert read_name("max_sinr+open_loop", config) == (
        "max_sinr",
        config.model_copy(update={"power": "open_loop"}),
    )
    assert read_name("max_sinr", config) == ("max_sinr", config)


def test_joint_rule_sets_band_and_compute_and_gives_way_in_both() -> None:
    _, joint = read_name("max_sinr+joint_min_max", CONFIG)
    assert (joint.bandwidth, joint.compute_share) == ("joint_min_max", "joint_min_max")
    _, after = read_name("max_sinr+equal", joint)
    assert (after.bandwidth, after.compute_share) == ("equal", "undecided")


def test_controller_decides_by_its_parts(make_state: MakeState, physics: Physics) -> None:
    state = make_state(3, 4, 2, seed=2)
    everywhere, draw = torch.ones(3, dtype=torch.bool), torch.Generator()
    named = make_controller("max_sinr+equal+2", CONFIG, physics)
    config = AllocationConfig(bandwidth="equal", draft_length=2)
    built = RuleController("max_sinr", config, physics)
    decisions = []
    for controller in (named, built):
        controller.reset(everywhere, draw)
        decisions.append(controller.decide(state))
    assert torch.equal(decisions[0].bandwidth_hz, decisions[1].bandwidth_hz)
    assert torch.equal(decisions[0].draft_length, decisions[1].draft_length)
    assert named.name == "max_sinr+equal+2"
    assert isinstance(named, Controller)


def test_registered_controller_goes_by_the_name_that_was_asked_for(
    physics: Physics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(
        allocation: AllocationConfig, physics: Physics, parameters: ControllersConfig
    ) -> Controller:
        return RuleController("max_sinr", allocation, physics, name="strongest")

    monkeypatch.setitem(CONTROLLERS, "strongest", make)
    assert make_controller("strongest", CONFIG, physics).name == "strongest"
    named = make_controller("strongest+equal", CONFIG, physics)
    assert (named.name, named.observes) == ("strongest+equal", "network")
    assert isinstance(named, Controller)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_sinr+clever", r"'clever' is unknown; .*servers: random.*bandwidth: equal.*a number"),
        ("max_sinr+equal+goodput", "'equal' and 'goodput' are both of kind bandwidth"),
        ("max_sinr+random", "'max_sinr' and 'random' are both of kind servers"),
        ("equal+full", "does not say who chooses the servers; add one of random, max_sinr"),
        ("max_sinr+", "'' is unknown"),
        ("max_sinr+99", "draft_length is 99 but physics.max_draft_length allows at most 8"),
        ("max_sinr+equal_compute", "compute_share is equal_compute but physics.service is batched"),
    ],
)
def test_name_that_makes_nothing_is_refused_in_one_line(
    physics: Physics, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        make_controller(name, CONFIG, physics)
    assert "\n" not in str(error.value)


def test_half_of_the_joint_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="splits both together"):
        AllocationConfig(bandwidth="joint_min_max")


def test_default_rules_are_dumped_as_ever() -> None:
    assert list(AllocationConfig().model_dump()) == [
        "bandwidth", "power", "draft_length", "search_length",
    ]  # fmt: skip
    assert "mode" in AllocationConfig(mode="psd").model_dump()


def test_fluid_servers_take_all_parts() -> None:
    fluid = Physics.of(PhysicsConfig(service="fluid"))
    controller = make_controller("random+joint_min_max+open_loop+log_threshold", CONFIG, fluid)
    assert controller.observes == "network"
