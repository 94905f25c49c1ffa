"""Mistakes in the bank of a task end in one line that says what is allowed."""

from __future__ import annotations

import pytest

from experiments.config import PROJECT, load_task
from uara.errors import UserError

TASK = PROJECT / "experiments" / "tasks" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["bank.speed_min_m_s=-1"], ["bank.speed_min_m_s", "-1", "greater than or equal to 0"]),
        (["bank.indoor_share=1.5"], ["bank.indoor_share", "1.5", "less than or equal to 1"]),
        (["world.horizon_slots=500"], ["500", "128 slots", "lengthen the bank"]),
        (["bank.num_servers=20"], ["num_servers is 20", "names 3", "make them equal"]),
        (
            ["bank.scenario=rma", "bank.device_height_m=15"],
            ["device_height_m is 15", "rma (rural macro)", "between 1 and 10"],
        ),
        (["bank.fading=none"], ["bank.fading", "'cir' or 'large_scale'"]),
        (["bank.cluster_radius_m=0"], ["bank.cluster_radius_m", "greater than 0"]),
        (["bank.tilt_rad=0.1"], ["bank.tilt_rad", "no option"]),
    ],
)
def test_a_mistake_in_the_bank_ends_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_task(TASK, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_the_quickstart_task_keeps_the_name_of_its_bank() -> None:
    """The shipped policies' cards carry it."""
    assert load_task(TASK).bank.config_hash() == "ff0a970bd4a5ec19"
    macro = load_task(TASK, ["bank.scenario=uma", "bank.inter_site_distance_m=400"])
    assert macro.bank.site_height_m == 25
    assert macro.config_hash() != load_task(TASK).config_hash()
