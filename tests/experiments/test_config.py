"""Configs: files that load, overrides, hashes, and a description on every field."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from experiments.config import (
    PROJECT,
    ExperimentConfig,
    TaskConfig,
    load_any,
    load_experiment,
    load_task,
)
from uara.errors import UserError

FILES = sorted(
    path
    for path in (PROJECT / "experiments").rglob("*.yaml")
    if path.parent.name not in ("papers", "rivals")  # of their own kinds, tested where these are
)


def models() -> list[type[BaseModel]]:
    """Find every config model of the project."""
    found: set[type[BaseModel]] = set()
    for floor in ("uara", "envs", "agents", "experiments"):
        package = importlib.import_module(floor)
        for module in pkgutil.walk_packages(package.__path__, f"{floor}."):
            if module.name != "uara.__main__":
                importlib.import_module(module.name)
    waiting = [BaseModel]
    while waiting:
        for model in waiting.pop().__subclasses__():
            waiting.append(model)
            if model.__module__.split(".")[0] in ("uara", "envs", "agents", "experiments"):
                found.add(model)
    return sorted(found, key=lambda model: model.__name__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_shipped_config_loads(path: Path) -> None:
    task = load_any(path)
    assert task.bank.num_servers == len(task.world.servers)
    if "task" in yaml.safe_load(path.read_text()):
        assert load_experiment(path).name == path.stem


def test_a_task_extends_another_and_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\nworld: {bandwidth_hz: 1e6, rtt_s: 0.05}\nevaluation: {controllers: [random]}\n"
    )
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\nname: middle\nworld: {rtt_s: 0.1}\n")
    (tmp_path / "own.yaml").write_text(
        "extends: middle.yaml\nname: own\nevaluation: {controllers: [max_sinr, max_gain]}\n"
    )
    task = load_task(tmp_path / "own.yaml", ["world.slot_s=0.5"])
    assert (task.name, task.world.bandwidth_hz, task.world.rtt_s) == ("own", 1e6, 0.1)
    assert task.evaluation.controllers == ("max_sinr", "max_gain")
    (tmp_path / "experiment.yaml").write_text("name: e\ntask: own.yaml\n")
    assert load_experiment(tmp_path / "experiment.yaml").task == task


def test_a_task_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    with pytest.raises(UserError, match=r"a\.yaml extends itself by way of .*a\.yaml; drop one"):
        load_task(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: gone.yaml\nname: c\n")
    with pytest.raises(UserError, match=r"gone\.yaml does not exist"):
        load_task(tmp_path / "c.yaml")


def test_there_are_shipped_configs() -> None:
    assert {"quickstart.yaml", "quickstart-sb3.yaml"} <= {path.name for path in FILES}


def test_every_field_of_every_config_is_described_and_no_other_is_allowed() -> None:
    found = models()
    assert {TaskConfig, ExperimentConfig} <= set(found)
    assert len(found) >= 18
    for model in found:
        assert model.model_config.get("extra") == "forbid", model
        assert model.model_config.get("frozen") is True, model
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_overrides_reach_nested_options_and_are_yaml(project: Path) -> None:
    config = load_experiment(
        project / "experiment.yaml",
        [
            "seed=4", "task.world.requests.arrivals_per_s=0.25", "learner.target_kl=null",
            "task.evaluation.controllers=[random]", "control.draft_length=learned",
        ],
    )  # fmt: skip
    assert config.seed == 4
    assert config.task.world.requests.arrivals_per_s == 0.25
    assert config.learner.kind == "mappo"
    assert config.learner.target_kl is None
    assert config.task.evaluation.controllers == ("random",)
    assert config.control.draft_length == "learned"
    assert config.task.world.horizon_slots == 16  # what is not overridden stays


def test_a_later_override_wins(project: Path) -> None:
    assert load_experiment(project / "experiment.yaml", ["seed=1", "seed=2"]).seed == 2


def test_a_task_inside_and_by_path_are_the_same(project: Path) -> None:
    by_path = load_experiment(project / "experiment.yaml")
    raw = yaml.safe_load((project / "experiment.yaml").read_text())
    raw["task"] = yaml.safe_load((project / "task.yaml").read_text())
    (project / "inside.yaml").write_text(yaml.safe_dump(raw))
    assert load_experiment(project / "inside.yaml") == by_path
    assert by_path.task == load_task(project / "task.yaml") == load_any(project / "experiment.yaml")


def test_a_task_is_found_beside_its_experiment_from_anywhere(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_experiment(project / "experiment.yaml").task.name == "tiny"


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]
    return [(path, value)]


def test_the_hash_changes_with_every_field(task: TaskConfig) -> None:
    plain = task.model_dump(mode="json")
    hashes = {task.config_hash()}
    for path, value in leaves(plain):
        changed = yaml.safe_load(yaml.safe_dump(plain))
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = [value]
        # Not validated on purpose: the hash must not depend on a value being allowed.
        hashes.add(_unchecked(task, changed).config_hash())
    assert len(hashes) == len(leaves(plain)) + 1


def _unchecked(task: TaskConfig, content: dict[str, Any]) -> TaskConfig:
    """Make a task of any content."""
    copy = task.model_copy()
    object.__setattr__(copy, "model_dump", lambda mode: content)
    return copy


def test_the_hash_does_not_change_with_the_order_of_fields(project: Path) -> None:
    task = load_task(project / "task.yaml")
    raw = yaml.safe_load((project / "task.yaml").read_text())
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(raw.items())
    }
    (project / "turned.yaml").write_text(yaml.safe_dump(turned, sort_keys=False))
    assert load_task(project / "turned.yaml").config_hash() == task.config_hash()


def test_a_default_that_is_written_out_does_not_change_the_hash(project: Path) -> None:
    plain = load_task(project / "task.yaml")
    spelt = load_task(project / "task.yaml", ["world.rtt_s=0.02", "physics.mode=sd"])
    assert spelt.config_hash() == plain.config_hash()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("world.requests.arrivals_per_s=-1", r"arrivals_per_s: .* greater than 0 \(given: -1\)"),
        ("bank.speed_min_m_s=-3", r"speed_min_m_s: .* or equal to 0 \(given: -3\)"),
        ("world.horizon_slots=999", "horizon_slots is 999 but the bank has"),
        ("bank.num_servers=7", "bank.num_servers is 7 but world.servers names"),
        ("world.requests.acceptance={kind: magic}", "'constant', 'positional', 'markov', 'trace'"),
        ("world.batteries={charge_min: 0.9, charge_max: 0.1}", "charge_min is 0.9 but charge_max"),
        ("world.outages={often: 1}", "world.outages.often' is no option"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(project: Path, override: str, text: str) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        load_experiment(project / "experiment.yaml", [f"task.{override}"])
    assert "\n" not in str(refusal.value)


def test_a_task_that_is_missing_is_named(project: Path) -> None:
    (project / "task.yaml").unlink()
    with pytest.raises(UserError, match=r"task\.yaml does not exist"):
        load_experiment(project / "experiment.yaml")
