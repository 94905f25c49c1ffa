"""Every option of a world that real runs would pass over is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from uara.decoding.refusals import check_supported, unsupported_options
from uara.errors import UserError
from uara.prediction import PhysicsConfig
from uara.world.config import WorldConfig
from uara.world.tasks import DEFAULT_TASKS

LAWFUL = [DEFAULT_TASKS[0].model_dump(), DEFAULT_TASKS[1].model_dump() | {"length_law": "fixed"}]


@pytest.mark.parametrize(
    ("world", "physics", "told"),
    [
        ({"memory": {"handover": "transfer"}}, {}, "world.memory.handover is 'transfer'"),
        ({"batteries": {}}, {}, "world.batteries is set"),
        ({"outages": {}}, {}, "world.outages is set"),
        ({"believed": {}}, {}, "world.believed is set"),
        ({"energy": {"form": "paper1"}}, {}, "world.energy.form is 'paper1'"),
        ({"requests": {"conversations": {}}}, {}, "world.requests.conversations is set"),
        ({"requests": {"bursts": {}}}, {}, "world.requests.bursts is set"),
        ({"requests": {"acceptance": {"kind": "markov"}}}, {}, "acceptance.kind is 'markov'"),
        ({"requests": {"acceptance": {"kind": "positional"}}}, {}, "is 'positional'"),
        ({"requests": {"acceptance_drift": 0.1}}, {}, "acceptance_drift is 0.1, allowed: 0"),
        ({"requests": {"output_drift": 0.2}}, {}, "output_drift is 0.2, allowed: 0"),
        ({"requests": {"tasks": LAWFUL}}, {}, "world.requests.tasks.length_law is 'fixed'"),
        ({}, {"service": "fluid"}, "physics.service is 'fluid', allowed: batched"),
        ({}, {"mode": "auto"}, "is 'auto', allowed: sd, server_ar, device_only, psd, async"),
    ],
)
def test_an_option_that_real_runs_lack_is_refused_in_one_line(
    world: dict[str, Any], physics: dict[str, Any], told: str
) -> None:
    given = WorldConfig.model_validate(world), PhysicsConfig.model_validate(physics)
    assert len(unsupported_options(*given)) == 1
    with pytest.raises(UserError) as caught:
        check_supported(*given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_options_are_told_at_once() -> None:
    world = WorldConfig.model_validate({"batteries": {}, "outages": {}})
    with pytest.raises(UserError, match=r"world\.batteries .* world\.outages .*change"):
        check_supported(world, PhysicsConfig())


@pytest.mark.parametrize("mode", ["sd", "server_ar", "device_only", "psd", "async"])
def test_what_real_runs_have_is_let_through(mode: str) -> None:
    check_supported(WorldConfig(), PhysicsConfig.model_validate({"mode": mode}))


# An option that is added to the world is either honoured by real runs or refused above.
HONOURED = {
    "servers", "devices", "bandwidth_hz", "downlink_bandwidth_hz", "power_max_dbm",
    "server_power_dbm", "rtt_s", "reach_gain_db", "slot_s", "csi_delay_slots", "gain_filter_s",
    "acceptance_prior_tokens", "requests",
    # of the simulated episodes: a real run ends with its requests
    "horizon_slots", "drain_slots",
}  # fmt: skip
REFUSED = {"memory", "energy", "batteries", "outages", "believed"}


def test_no_option_of_the_world_is_forgotten() -> None:
    assert set(WorldConfig.model_fields) == HONOURED | REFUSED
