"""`uara plan`: its comparisons, its refusals, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.config import PROJECT
from experiments.plan import (
    EXAMPLE,
    bits_for_reduction,
    load_plan_task,
    reductions,
    run_plan,
    with_changes,
)
from uara.control.plan.config import HetEdgeConfig
from uara.errors import UserError

Uara = Callable[..., tuple[int, str, str]]

TINY = {
    "name": "tiny",
    "drops": 3,
    "hetedge": {"users": 8, "output_tokens_max": 40, "memory_bytes": 1.95e9},
    "comparisons": [
        {"against": "uniform_bandwidth", "printed_percent": 30.0, "changes": {"draft": "68m"},
         "read_as": "a reading"},
        {"against": "no_batching"},
    ],
    "extensions": [
        {"name": "early", "changes": {"upload": "batch_by_batch"}, "at": {"bits_per_token": 30000}}
    ],
    "sweeps": [
        {"option": "verify_gpu.fixed_scale", "values": [0, 1], "against": ["max", "no_pipeline"],
         "changes": {"acceptance": 0.6}}
    ],
}  # fmt: skip


@pytest.fixture
def tiny(project: Path) -> Path:
    (project / "plan.yaml").write_text(yaml.safe_dump(TINY))
    return project / "plan.yaml"


def test_the_papers_file_has_its_figures() -> None:
    task = load_plan_task(PROJECT / EXAMPLE)
    printed = {row.printed_percent for row in task.comparisons} - {None}
    assert printed == {44.9, 29.3, 25.2, 21.4, 19.6, 20.5, 31.6, 30.7}
    for row in task.comparisons:
        assert row.read_as
        with_changes(task.hetedge, row.changes)
    for sweep in task.sweeps:
        for value in sweep.values:
            with_changes(task.hetedge, {**sweep.changes, sweep.option: value})


@pytest.mark.parametrize("noise", ["power", "density"])
def test_the_payload_of_a_printed_figure_gives_it(noise: str) -> None:
    config = HetEdgeConfig(users=8, output_tokens_max=40, search="prefix", noise=noise)
    bits = bits_for_reduction(config, 0.3, 4)
    assert bits is not None
    at = config.model_copy(update={"bits_per_token": bits})
    own_s, even_s = reductions(at, "uniform_bandwidth", 4)
    assert np.mean(1 - own_s / even_s) == pytest.approx(0.3, abs=1e-6)
    assert bits_for_reduction(config, 0.99, 4) == float("inf")


def test_a_report_has_a_row_per_point(tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = run_plan(load_plan_task(tiny), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 5) for k in range(1, 6)]
    uniform, single = report.comparisons
    assert uniform.changes == {"draft": "68m"}
    assert uniform.bits_per_token is not None
    assert single.bits_per_token is None
    assert single.percent.mean == pytest.approx(
        100 * (1 - single.own_s.mean / single.baseline_s.mean), abs=3
    )
    assert report.extensions[0].percent.mean > 0
    assert [row.value for row in report.sweeps[0]] == [0, 1]
    assert report.sweeps[0][0].own_s.mean < report.sweeps[0][1].own_s.mean


def test_changes_reach_options_by_their_names() -> None:
    config = with_changes(HetEdgeConfig(), {"verify_gpu.fixed_scale": 0.5, "draft": "68m"})
    assert (config.verify_gpu.fixed_scale, config.draft) == (0.5, "68m")
    assert config.verify_gpu.peak_flop_per_s == HetEdgeConfig().verify_gpu.peak_flop_per_s
    for key in ("verify_gpu.colour", "colour", "users.colour"):
        with pytest.raises(UserError, match=f"'{key}' is no option"):
            with_changes(config, {key: 1})
    with pytest.raises(UserError, match="users"):
        with_changes(config, {"users": 0})


def test_the_command_shows_theirs_beside_ours(uara: Uara, tiny: Path) -> None:
    status, out, err = uara("plan", "plan.yaml", "--json", "out.json", "--gantt", "out.png")
    assert (status, err) == (0, "")
    for words in ("plan of the first drop", "uniform_bandwidth", "30.0", "a reading",
                  "kbit per token", "early", "verify_gpu.fixed_scale"):  # fmt: skip
        assert words in out
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(Path("out.json").read_text())
    assert content["command"] == "plan"
    assert content["config"]["hetedge"]["users"] == 8
    kinds = [row["kind"] for row in content["rows"]]
    assert kinds == ["plan", "comparison", "comparison", "extension", "sweep", "sweep"]
    plan = content["rows"][0]
    assert len(plan["bandwidth_hz"]) == 8
    assert sum(plan["bandwidth_hz"]) == pytest.approx(20e6)
    assert sorted(k for batch in plan["batches"] for k in batch["tasks"]) == list(range(8))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task.yaml"], ["task.yaml has no group `hetedge`", EXAMPLE]),
        (["task.yaml", "hetedge.users=3"], ["task.yaml has no group `hetedge`"]),
        (["none.yaml"], ["none.yaml", "does not exist"]),
        (["plan.yaml", "hetedge.users=0"], ["hetedge.users", "greater than 0"]),
        (["plan.yaml", "hetedge.memory_bytes=1e9"], ["memory_bytes is 1e+09", "give it that much"]),
        (["plan.yaml", "hetedge.colour=red"], ["hetedge.colour", "no option"]),
        (
            ["plan.yaml", "comparisons=[{against: luck}]"],
            ["'luck' is unknown", "uniform_bandwidth"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_line(
    uara: Uara, tiny: Path, words: list[str], told: list[str]
) -> None:
    status, _, err = uara("plan", *words)
    assert status == 2
    assert err.count("\n") == 1
    for text in told:
        assert text in err


def test_a_plan_is_executed_with_the_shipped_pair(project: Path, uara: Uara) -> None:
    options = {
        "name": "real", "drops": 2,
        "hetedge": {"users": 4, "output_tokens_max": 8, "memory_bytes": 1.95e9,
                    "draft_length_max": 3, "acceptance": 0.73},
        "execute": {"rule": "gumbel"},
    }  # fmt: skip
    (project / "real.yaml").write_text(yaml.safe_dump(options))
    code, out, _ = uara("plan", "real.yaml", "--execute", "--gantt", "g.png", "--json", "r.json")
    assert code == 0
    assert "4 of 4 answers equal single-request decoding" in out
    assert "coupled output against the target alone: 4 equal" in out
    assert (project / "g.png").read_bytes().startswith(b"\x89PNG")
    row = json.loads((project / "r.json").read_text())["rows"][-1]
    assert row["kind"] == "execution"
    whole = row["whole"]
    parts = sum(whole[f"{name}_s"] for name in ("planned", "acceptance", "slowest", "leaving"))
    assert parts == pytest.approx(whole["executed_s"])


def test_answers_longer_than_the_pairs_context_are_refused(project: Path, uara: Uara) -> None:
    (project / "plan.yaml").write_text(yaml.safe_dump(TINY | {"comparisons": [], "extensions": [],
                                                              "sweeps": []}))  # fmt: skip
    code, _, told = uara("plan", "plan.yaml", "hetedge.output_tokens_max=600",
                         "hetedge.memory_bytes=4e9", "--execute")  # fmt: skip
    assert code == 2
    assert "answers of 600 tokens do not fit the 512 tokens of context" in told
