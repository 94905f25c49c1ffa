"""Plans for two edge nodes, the figures of arXiv 2510.11331 beside ours, and what decides them.

Shape legend: D drops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from experiments.config import from_options, read_options
from experiments.execution_config import ExecutionConfig
from experiments.statistics import Interval, mean_interval
from uara.control.plan import uplink
from uara.control.plan.baselines import BASELINES
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import Plan, choose, make_plan
from uara.control.plan.tasks import draw_tasks
from uara.errors import UserError

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
Value = bool | int | float | str
Row = TypeVar("Row")

GROUP = "hetedge"
EXAMPLE = "experiments/papers/hetedge.yaml"
BITS_MAX = 1e9  # per token; where even that does not give a reduction, none will


def _known(name: str) -> str:
    if name not in BASELINES:
        raise ValueError(f"baseline '{name}' is unknown; allowed: {', '.join(BASELINES)}")
    return name


class Comparison(BaseModel):
    """A reduction of latency that the paper prints, and where it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str = Field(description="baseline")
    printed_percent: float | None = Field(None, description="less latency, as printed; null: none")
    changes: dict[str, Value] = Field({}, description="options of `hetedge` at that point")
    read_as: str = Field("", description="how the point and the baseline were read")

    _check = field_validator("against")(_known)


class Extension(BaseModel):
    """Another planner that is held against the file's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what is different")
    changes: dict[str, Value] = Field(description="options of `hetedge` that make it different")
    at: dict[str, Value] = Field({}, description="options of `hetedge` that both have")


class Sweep(BaseModel):
    """Reductions over the values of one option."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    option: str = Field(description="option of `hetedge`, e.g. `verify_gpu.fixed_scale`")
    values: tuple[Value, ...] = Field(min_length=1, description="its values")
    against: tuple[str, ...] = Field(min_length=1, description="baselines")
    changes: dict[str, Value] = Field({}, description="further options of `hetedge`")

    @field_validator("against")
    @classmethod
    def _check(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(name) for name in names)


class PlanTask(BaseModel):
    """A cell to plan for, and what to hold the plan against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the task")
    hetedge: HetEdgeConfig = Field(description="users, uplink, nodes, models and readings")
    drops: int = Field(20, gt=1, description="drops of users that comparisons are means over")
    comparisons: tuple[Comparison, ...] = Field((), description="rows with the paper's figures")
    extensions: tuple[Extension, ...] = Field((), description="other planners beside the file's")
    sweeps: tuple[Sweep, ...] = Field((), description="what options decide")
    execute: ExecutionConfig = Field(
        ExecutionConfig(), description="how `--execute` runs the plan with a real pair"
    )


@dataclass(frozen=True)
class ComparisonRow:
    """One comparison: theirs beside ours."""

    against: str
    changes: dict[str, Value]
    printed_percent: float | None
    percent: Interval
    own_s: Interval
    baseline_s: Interval
    bits_per_token: float | None  # at which the printed figure comes out; None: not asked
    read_as: str


@dataclass(frozen=True)
class ExtensionRow:
    """What another planner takes off the file's own."""

    name: str
    changes: dict[str, Value]
    at: dict[str, Value]
    percent: Interval
    own_s: Interval


@dataclass(frozen=True)
class SweepRow:
    """Reductions at one value of an option."""

    option: str
    value: Value
    percent: dict[str, Interval]
    own_s: Interval


@dataclass(frozen=True)
class PlanReport:
    """Everything that `uara plan` found."""

    plan: Plan
    comparisons: tuple[ComparisonRow, ...]
    extensions: tuple[ExtensionRow, ...]
    sweeps: tuple[tuple[SweepRow, ...], ...]


def load_plan_task(path: Path | str, overrides: list[str] | None = None) -> PlanTask:
    """Read a file for the planner and apply `k=v` overrides.

    Raises:
        UserError: for a missing file, one without the planner's group, or a wrong option.
    """
    raw = read_options(path)
    if GROUP not in raw:
        raise UserError(
            f"{path} has no group `{GROUP}` (users, uplink, models), which `uara plan` plans for; "
            f"give a file that has one, e.g. {EXAMPLE}"
        )
    return from_options(PlanTask, read_options(path, overrides), path)


def with_changes(config: HetEdgeConfig, changes: Mapping[str, Value]) -> HetEdgeConfig:
    """Change options by their dotted names.

    Raises:
        UserError: if there is no such option, or its value is not allowed.
    """
    raw: dict[str, Any] = config.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        node: Any = raw
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UserError(f"'{key}' is no option of `{GROUP}`; `uara schema` lists all options")
        node[last] = value
    return from_options(HetEdgeConfig, raw, GROUP)


def run_plan(task: PlanTask, progress: Progress | None = None) -> PlanReport:
    """Plan the first drop and make all comparisons.

    Args:
        task: what to plan for.
        progress: called with (points done, points in all).
    """
    points = len(task.comparisons) + len(task.extensions) + sum(len(s.values) for s in task.sweeps)
    finished = 0

    def done(row: Row) -> Row:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, points)
        return row

    config, drops = task.hetedge, task.drops
    return PlanReport(
        plan=make_plan(config, draw_tasks(config, 1)),
        comparisons=tuple(done(_compare(config, row, drops)) for row in task.comparisons),
        extensions=tuple(done(_extend(config, row, drops)) for row in task.extensions),
        sweeps=tuple(
            tuple(done(_sweep_row(config, sweep, value, drops)) for value in sweep.values)
            for sweep in task.sweeps
        ),
    )


def reductions(config: HetEdgeConfig, against: str, drops: int) -> tuple[Array, Array]:
    """Compute completion times of the plan and of a baseline, (D,) seconds each."""
    tasks = draw_tasks(config, drops)
    chosen = choose(config, tasks)
    own_s = np.array([choice.total_s for choice in chosen])
    return own_s, BASELINES[against](config, tasks, chosen)


def _compare(base: HetEdgeConfig, comparison: Comparison, drops: int) -> ComparisonRow:
    config = with_changes(base, comparison.changes)
    own_s, baseline_s = reductions(config, comparison.against, drops)
    printed = comparison.printed_percent
    bits = None
    if comparison.against == "uniform_bandwidth" and printed is not None:
        bits = bits_for_reduction(config, printed / 100, drops)
    return ComparisonRow(
        against=comparison.against,
        changes=dict(comparison.changes),
        printed_percent=printed,
        percent=_percent(own_s, baseline_s),
        own_s=_mean(own_s),
        baseline_s=_mean(baseline_s),
        bits_per_token=bits,
        read_as=comparison.read_as,
    )


def _extend(base: HetEdgeConfig, extension: Extension, drops: int) -> ExtensionRow:
    config = with_changes(base, extension.at)
    tasks = draw_tasks(config, drops)
    other = with_changes(config, extension.changes)
    before_s, after_s = (
        np.array([choice.total_s for choice in choose(own, tasks)]) for own in (config, other)
    )
    return ExtensionRow(
        name=extension.name,
        changes=dict(extension.changes),
        at=dict(extension.at),
        percent=_percent(after_s, before_s),
        own_s=_mean(after_s),
    )


def _sweep_row(base: HetEdgeConfig, sweep: Sweep, value: Value, drops: int) -> SweepRow:
    config = with_changes(base, {**sweep.changes, sweep.option: value})
    tasks = draw_tasks(config, drops)
    chosen = choose(config, tasks)
    own_s = np.array([choice.total_s for choice in chosen])
    percent = {
        name: _percent(own_s, BASELINES[name](config, tasks, chosen)) for name in sweep.against
    }
    return SweepRow(sweep.option, value, percent, _mean(own_s))


def bits_for_reduction(config: HetEdgeConfig, reduction: float, drops: int) -> float | None:
    """Find the payload per token at which equal finish takes that share off uniform bandwidth.

    Neither batches nor draft lengths depend on the payload where all wait for all uploads, so
    computing stays and uploads grow with the payload: the mean reduction grows with it too.

    Args:
        config: everything but the payload.
        reduction: mean over drops of 1 - ours / theirs.
        drops: D.

    Returns:
        Bits per token; infinite where no payload is enough.
    """
    waiting = config.model_copy(update={"upload": "equal_finish"})
    tasks = draw_tasks(waiting, drops)
    chosen = choose(waiting, tasks)
    compute_s = np.array([choice.total_s - choice.release_s.max() for choice in chosen])
    bits, band_hz = tasks.input_tokens, waiting.bandwidth_hz  # one bit per token
    if waiting.noise == "density":
        snr_hz = tasks.snr_hz(waiting)
        split = uplink.equal_finish_at_density(bits, snr_hz, band_hz)
        shared = uplink.upload_s(bits, split, snr_hz=snr_hz).max(-1)
        even = uplink.upload_s(bits, uplink.uniform(bits, band_hz), snr_hz=snr_hz).max(-1)
    else:
        efficiency = tasks.efficiency(waiting)
        split = uplink.equal_finish(bits, efficiency, band_hz)
        shared = uplink.upload_s(bits, split, efficiency=efficiency).max(-1)
        even = uplink.upload_s(bits, uplink.uniform(bits, band_hz), efficiency=efficiency).max(-1)

    def mean(per_token: float) -> float:
        own_s, other_s = compute_s + per_token * shared, compute_s + per_token * even
        return float((1 - own_s / other_s).mean())

    if mean(BITS_MAX) < reduction:
        return float("inf")
    low, high = 0.0, BITS_MAX
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) >= reduction else (middle, high)
    return high


def _mean(values: Array) -> Interval:
    return mean_interval(values, np.arange(len(values)))


def _percent(own_s: Array, other_s: Array) -> Interval:
    """Express how much less time the first takes, per cent, with the interval over drops."""
    return _mean(100 * (1 - own_s / other_s))
