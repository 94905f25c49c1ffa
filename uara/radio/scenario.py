"""What 3GPP TR 38.901 says of each scenario: heights, distances and carriers that it holds for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

ScenarioName = Literal["umi", "uma", "rma"]


@dataclass(frozen=True)
class Scenario:
    """Ranges of one scenario, and the values that a bank takes where none are given."""

    title: str
    site_height_m: tuple[float, float]  # Table 7.4.1-1; wider where it names one height only
    device_height_m: tuple[float, float]  # Table 7.4.1-1
    site_clearance_m: float  # least horizontal distance of device and site, Tables 7.2-1, 7.2-3
    inter_site_distance_min_m: float  # leaves devices room between the clearances
    carrier_max_hz: float  # notes of Table 7.4.1-1
    defaults: dict[str, Any] = field(default_factory=dict)  # Tables 7.2-1, 7.2-3 and 7.8-1


SCENARIOS: dict[str, Scenario] = {
    "umi": Scenario(
        title="urban micro street canyon",
        site_height_m=(5.0, 25.0),
        device_height_m=(1.5, 22.5),
        site_clearance_m=10.0,
        inter_site_distance_min_m=60.0,
        carrier_max_hz=100e9,
    ),
    "uma": Scenario(
        title="urban macro",
        site_height_m=(15.0, 50.0),
        device_height_m=(1.5, 22.5),
        site_clearance_m=35.0,
        inter_site_distance_min_m=200.0,
        carrier_max_hz=100e9,
        defaults={"site_height_m": 25.0, "inter_site_distance_m": 500.0},
    ),
    "rma": Scenario(
        title="rural macro",
        site_height_m=(10.0, 150.0),
        device_height_m=(1.0, 10.0),
        site_clearance_m=35.0,
        inter_site_distance_min_m=200.0,
        carrier_max_hz=30e9,
        # Table 7.2-3: who is outdoors sits in a car; cars go at up to 120 km/h (ITU-R M.2412).
        defaults={
            "site_height_m": 35.0,
            "inter_site_distance_m": 1732.0,
            "speed_max_m_s": 33.3,
            "car_share": 1.0,
        },
    ),
}
assert tuple(SCENARIOS) == get_args(ScenarioName), "each scenario has its ranges"
