"""The frozen tasks: their files say what they ask, and their page says what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import task_cards as module
from experiments.config import load_task
from experiments.diagnose import diagnose
from experiments.task_cards import (
    FOLDER,
    PAGE,
    TASKS,
    card,
    fill_page,
    frozen_tasks,
    intent,
    read_diagnosis,
    task_file,
)
from uara.errors import UserError
from uara.radio.bank import BankConfig, ChannelBank, bank_path

NAMES = frozen_tasks()


def test_the_frozen_tasks() -> None:
    assert set(NAMES) == {
        "battery", "kv-bound", "mobile", "multi-turn", "outage-calendar", "reuse1-power",
        "stale-local", "thin-uplink", "uara-180x20", "uara-30x4", "uara-60x8", "uara-8x3",
        "unknown-acceptance", "wide-area", "wrong-profile",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_what_it_asks_and_has_worlds_to_tune_and_to_judge(name: str) -> None:
    path = task_file(name)
    task = load_task(path)
    assert task.name == name
    assert len(intent(path)) > 80
    assert task.bank.tuning > 0
    assert task.bank.evaluation > 0
    assert (task.bank.train > 0) == (name != "uara-180x20")


def test_what_a_claim_is_about_is_in_its_world() -> None:
    tasks = {name: load_task(task_file(name)) for name in NAMES}
    hidden = tasks["unknown-acceptance"].world.requests
    assert hidden.acceptance_drift > 0
    assert hidden.output_drift > 0
    assert tasks["stale-local"].world.csi_delay_slots > 0
    believed = tasks["wrong-profile"].world.believed
    assert believed is not None
    assert all(0.2 <= abs(f - 1) <= 0.4 for f in believed.forward_factor)
    assert tasks["reuse1-power"].physics.link.interference == "reuse1"
    assert 0.05 <= tasks["wide-area"].world.rtt_s <= 0.1
    assert tasks["kv-bound"].world.memory.admission
    assert tasks["multi-turn"].world.requests.conversations is not None
    large, small = tasks["uara-180x20"], tasks["uara-30x4"]
    for a, b in ((large, small), (tasks["uara-60x8"], small)):
        assert a.world.bandwidth_hz / a.bank.num_servers == pytest.approx(
            b.world.bandwidth_hz / b.bank.num_servers
        )
        rates = [
            t.world.requests.arrivals_per_s * t.bank.num_devices / t.bank.num_servers
            for t in (a, b)
        ]
        assert rates[0] == pytest.approx(rates[1])


def test_an_unknown_task_is_refused_and_a_base_is_none() -> None:
    with pytest.raises(UserError, match=r"'uara-12x3' is unknown; allowed: battery, kv-bound"):
        task_file("uara-12x3")
    assert (TASKS / "uara-12x3.yaml").is_file()


@pytest.fixture
def tiny(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the tiny task the only frozen one, with a file that says what it asks."""
    text = (project / "task.yaml").read_text()
    (project / "tiny.yaml").write_text(f"# Asks who\n# is served where.\n{text}")
    for name in ("task.yaml", "experiment.yaml"):
        (project / name).unlink()
    monkeypatch.setattr(module, "TASKS", project)
    return project


def test_a_diagnosis_is_made_once_and_again_when_the_task_changes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, made_bank: Callable[[BankConfig], ChannelBank]
) -> None:
    calls: list[Any] = []

    def counted(task: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["split"])
        return diagnose(task, *args, **kwargs)

    monkeypatch.setattr(module, "diagnose", counted)

    def run() -> None:
        module.diagnose_tasks(
            ["tiny"], episodes=2, modes=[], folder=tiny / "kept", banks=tiny / "banks"
        )

    run()
    run()
    assert calls == ["tuning"]
    kept = read_diagnosis(tiny / "kept" / "tiny.json")
    assert [row["mode"] for row in kept["modes"]] == ["sd", "server_ar"]
    assert kept["episodes"] == 2
    assert not [row for row in kept["findings"] if "rule 6" in row["rule"]]
    raw = yaml.safe_load((tiny / "tiny.yaml").read_text())
    raw["world"]["power_max_dbm"] = 20.0
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(raw))
    run()
    assert calls == ["tuning"] * 2


CONTENT = {
    "episodes": 32,
    "findings": [
        {"name": "best over greedy", "percent": 3.96, "rule": "at least 5 %", "holds": False},
        {"name": "server_ar", "percent": 40.0, "rule": "at least 20 %", "holds": True},
    ],
    "modes": [
        {"mode": "sd", "e2e_s": 12.34, "is_lossless": True},
        {"mode": "device_only", "e2e_s": 2.0, "is_lossless": False},
    ],
    "spread": {"random": 15.0},
    "share_of_time": {"queue": 0.3, "path": 0.01},
    "verdict": "Worth learning here: nothing.",
}


def test_a_card_marks_the_rules_that_are_missed(tiny: Path) -> None:
    text = card("tiny", CONTENT)
    assert "Asks who is served where." in text
    assert "| best over greedy | +4.0 | at least 5 % | **no** |" in text
    assert "| server_ar | +40.0 | at least 20 % | yes |" in text
    assert "queue 30 %" in text
    assert "path" not in text
    assert "`sd` 12.34, `device_only` 2.00 (draft alone, lossy)." in text


def test_a_missing_diagnosis_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with `uara tasks gone`"):
        read_diagnosis(tmp_path / "gone.json")


def test_the_page_is_what_the_kept_diagnoses_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    kept = [name for name in NAMES if (FOLDER / f"{name}.json").is_file()]
    assert fill_page(text, kept) == text
    for name in kept:
        stored = read_diagnosis(FOLDER / f"{name}.json")
        assert stored["task_hash"] == load_task(task_file(name)).config_hash(), name


def test_banks_of_the_twelve_phone_tasks_are_one() -> None:
    names = ("battery", "kv-bound", "thin-uplink", "unknown-acceptance", "wrong-profile")
    banks = {bank_path(load_task(task_file(name)).bank, "banks") for name in names}
    assert len(banks) == 1
