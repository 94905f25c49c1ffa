"""The whole road on a much reduced task, with a bank that Sionna builds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib.image
import pytest
import yaml
from rich.console import Console

from experiments import quickstart
from experiments.config import load_experiment
from uara.errors import UserError


@pytest.fixture
def reduced(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the reduced experiment the quickstart's."""
    task = yaml.safe_load((project / "task.yaml").read_text())
    task["bank"] |= {"num_tones": 2, "num_snapshots": 1, "evaluation": 2}
    task["decode"] |= {"requests": 2}
    (project / "task.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setattr(quickstart, "CONFIG", project / "experiment.yaml")
    monkeypatch.setattr(quickstart, "VALIDATION_EPISODES", 2)
    monkeypatch.setattr("experiments.runs.VALIDATION_EPISODES", 2)
    return project


@pytest.mark.slow
def test_the_quickstart_leaves_tables_pictures_records_and_policies(reduced: Path) -> None:
    folder = reduced / "runs" / "quick"
    with (reduced / "console.txt").open("w") as file:
        console = Console(file=file, width=200)
        rows = quickstart.run_quickstart(folder, 3, console)
    names = [row["controller"] for row in rows]
    assert sorted(names[:3]) == ["greedy_latency", "mappo", "max_sinr"]
    assert names[3:] == ["mappo", "least_loaded"]
    simulated, decoded = rows[:3], rows[3:]
    assert {row["episodes"] for row in simulated} == {6}
    assert {row["requests"] for row in decoded} == {2}

    # two banks: the made-up one and the one that was built
    assert len(list((reduced / "banks").iterdir())) == 2
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "metrics.csv", "checkpoint.pt", "policy.pt", "policy_last.pt", "finished",
        "evaluation.csv", "results.json",
        "figures/latency.png", "figures/learning_curve.png", "figures/map.png",
    } <= left  # fmt: skip
    for name in ("mappo", "least_loaded"):
        assert {
            f"decode/{name}-rounds.parquet",
            f"decode/{name}-requests.parquet",
            f"decode/{name}-timeline.png",
        } <= left
    assert any("events.out.tfevents" in name for name in left)
    assert not [name for name in left if ".partial" in name]

    for name in [name for name in left if name.endswith(".png")]:
        pixels = matplotlib.image.imread(folder / name)[..., :3]
        height, width = pixels.shape[:2]
        assert min(height, width) >= 150, name
        assert pixels.std() > 0.02, f"{name} is empty"
    with (folder / "evaluation.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["controller"] for row in written] == names[:3]
    config = load_experiment(quickstart.CONFIG)
    assert {row["task"] for row in written} == {config.task.config_hash()}
    stored = json.loads((folder / "results.json").read_text())
    assert [row["controller"] for row in stored] == names
    said = (reduced / "console.txt").read_text()
    assert "0 unexplained" in said
    assert "tensorboard --logdir" in said

    # a second walk trains no more and says the same
    policy = (folder / "policy.pt").read_bytes()
    with (reduced / "console.txt").open("w") as file:
        again = quickstart.run_quickstart(folder, 3, Console(file=file))
    assert (folder / "policy.pt").read_bytes() == policy
    assert [row["controller"] for row in again] == names
    assert again[0]["e2e_latency_s"] == rows[0]["e2e_latency_s"]

    with pytest.raises(UserError, match="holds a run of another config; remove it or give"):
        quickstart.run_quickstart(folder, 4, Console(quiet=True))
