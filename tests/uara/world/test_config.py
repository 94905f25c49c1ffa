"""What controllers believe, and that options which are not used leave no trace in dumps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from uara.errors import UserError
from uara.network import NetworkState
from uara.radio.bank import BankConfig
from uara.world.acceptance import MarkovAcceptance
from uara.world.arrivals import BurstConfig
from uara.world.batteries import BatteryConfig
from uara.world.config import BelievedConfig, WorldConfig
from uara.world.memory import MemoryConfig
from uara.world.outages import OutageConfig
from uara.world.requests import RequestConfig
from uara.world.tasks import DEFAULT_TASKS
from uara.world.world import World

MakeWorld = Callable[..., World]
GAIN_DB = [[-95.0, -105.0], [-108.0, -98.0]]
RACKS = ("4xL40S", "4xA40")
TIMES = {
    "draft_time_s", "forward_fixed_s", "forward_per_row_s", "forward_per_token_s",
    "forward_per_context_s",
}  # fmt: skip


def test_unused_options_leave_no_trace_in_a_dump() -> None:
    dump = WorldConfig().model_dump(mode="json")
    assert sorted(dump) == [
        "acceptance_prior_tokens", "bandwidth_hz", "csi_delay_slots", "devices",
        "downlink_bandwidth_hz", "drain_slots", "gain_filter_s", "horizon_slots", "power_max_dbm",
        "reach_gain_db", "requests", "rtt_s", "server_power_dbm", "servers", "slot_s",
    ]  # fmt: skip
    assert sorted(dump["requests"]) == ["acceptance_spread", "arrivals_per_s", "tasks"]
    assert not {"length_law", "length_sigma"} & dump["requests"]["tasks"][0].keys()


def test_used_options_survive_a_dump() -> None:
    config = WorldConfig(
        memory=MemoryConfig(admission=True),
        batteries=BatteryConfig(charge_min=0.1),
        outages=OutageConfig(),
        believed=BelievedConfig(draft_factor=(1.3,)),
        requests=RequestConfig(
            bursts=BurstConfig(), acceptance=MarkovAcceptance(gap=0.1), output_drift=0.2,
            tasks=(DEFAULT_TASKS[0].model_copy(update={"length_law": "lognormal"}),),
        ),
    )  # fmt: skip
    assert WorldConfig.model_validate(config.model_dump(mode="json")) == config
    assert WorldConfig.model_validate_json(config.model_dump_json()) == config


def believing(make_world: MakeWorld, believed: BelievedConfig | None) -> World:
    return make_world(GAIN_DB, servers=RACKS, arrivals_per_s=0.2, believed=believed)


def test_controllers_plan_with_what_they_believe_and_the_world_with_the_truth(
    make_world: MakeWorld,
) -> None:
    true = believing(make_world, None)
    wrong = believing(make_world, BelievedConfig(forward_factor=(0.5, 2.0), draft_factor=(1.25,)))
    told, knows = wrong.state(), true.state()
    torch.testing.assert_close(
        told.forward_fixed_s / knows.forward_fixed_s, torch.tensor([[0.5, 2.0]])
    )
    torch.testing.assert_close(
        told.forward_per_token_s / knows.forward_per_token_s, torch.tensor([[0.5, 2.0]])
    )
    torch.testing.assert_close(told.draft_time_s, 1.25 * knows.draft_time_s)
    actual = wrong.state(true=True)
    for field in fields(NetworkState):
        a, b, c = (getattr(s, field.name) for s in (told, knows, actual))
        if field.name in TIMES:
            assert torch.equal(c, b), field.name
        elif b is not None:
            assert torch.equal(a, b), field.name


def test_wrong_beliefs_change_no_outcome_of_the_same_decisions(
    make_world: MakeWorld, to_anywhere: Any, play_out: Any
) -> None:
    here = play_out(believing(make_world, None), to_anywhere(2))
    believed = BelievedConfig(servers=("4xA100-40GB", "4xRTX6000Ada"), devices=("iphone-14",))
    there = play_out(believing(make_world, believed), to_anywhere(2))
    assert torch.equal(here.stack("alive_s"), there.stack("alive_s"))
    assert torch.equal(here.stack("device_energy_j"), there.stack("device_energy_j"))


@pytest.mark.parametrize(
    ("believed", "text"),
    [
        ({"servers": ("4xA40",)}, "believed.servers names 1 racks but there are 2 servers"),
        ({"servers": ("4xA40", "abacus")}, "server 'abacus' is unknown"),
        ({"devices": ("slide-rule",)}, "device 'slide-rule' is unknown"),
    ],
)
def test_belief_that_cannot_be_is_refused_in_one_line(
    make_world: MakeWorld, believed: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        believing(make_world, BelievedConfig(**believed))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RequestConfig(arrivals_per_s=-0.1), "arrivals_per_s"),
        (lambda: BankConfig(speed_min_m_s=-1.0), "speed_min_m_s"),
        (lambda: WorldConfig(bandwidth_hz=-1e6), "bandwidth_hz"),
        (lambda: BurstConfig(rate_ratio=0.5), "rate_ratio"),
        (lambda: MemoryConfig(backhaul_bps=-1.0), "backhaul_bps"),
        (lambda: OutageConfig(every_s=0.0), "every_s"),
        (lambda: BelievedConfig(forward_factor=(0.0,)), "forward_factor"),
    ],
)
def test_negative_speeds_and_rates_are_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ValidationError, match=text) as refusal:
        make()
    assert "greater than" in str(refusal.value)
