"""Makes the report of runs: what was trained, how it scores beside rules, and what it decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.policy import load_policy
from experiments.comparison import REFERENCE, rule_controller
from experiments.config import TaskConfig
from experiments.evaluation import EpisodeRows, evaluate_controller, evaluation_row, load_bank
from experiments.report.decoded import decode_section
from experiments.report.gather import TrainedRun, find_runs, mean_curve
from experiments.report.page import Part, Picture, Section, Table, write_page
from experiments.report.played import play_world
from experiments.results import pool_seeds, repeat
from experiments.robust_statistics import interquartile_mean, probability_of_improvement
from experiments.runs import evaluation_file, provenance
from experiments.sweep import load_rows
from experiments.tables import show_interval
from uara.errors import UserError
from uara.figures.curves import draw_curves
from uara.figures.distribution import draw_distributions
from uara.prediction import Physics
from uara.radio.bank import ChannelBank

Progress = Callable[[int, int], None]

CURVES = {
    "eval/e2e_latency_s": "validation E2E latency (s)",
    "rollout/reward": "reward per network and slot",
    "rollout/handovers": "handovers per request, exploring",
    "train/explained_variance": "explained variance of values",
    "train/entropy_server": "entropy of server choice (nat)",
    "train/approx_kl": "divergence of an update (nat)",
}
DISTRIBUTIONS = {
    "e2e_latency_s": "mean E2E latency of an episode (s)",
    "e2e_p95_s": "95th percentile of E2E latency in an episode (s)",
    "ttft_s": "mean TTFT of an episode (s)",
    "tpot_s": "mean TPOT of an episode (s)",
}


@dataclass
class TaskResults:
    """One task, its experiments, and what controllers did on its frozen episodes."""

    config: TaskConfig
    bank: ChannelBank
    groups: dict[str, list[TrainedRun]] = field(default_factory=dict)
    rules: dict[str, EpisodeRows] = field(default_factory=dict)
    policies: dict[str, list[EpisodeRows]] = field(default_factory=dict)


def build_report(
    folders: Sequence[Path],
    out: Path,
    *,
    decoded: Sequence[Path] = (),
    episodes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Read runs, play what has not been played, and write the page.

    Args:
        folders: of runs, or of experiments with a run per seed.
        out: HTML file.
        decoded: folders of records of real runs (`uara decode --records`).
        episodes: frozen episodes per rule; as many as the policies' stored rows have by default.
        progress: called with controllers played and in all.

    Raises:
        UserError: if a folder holds no run, or no timeline of real runs.
    """
    groups, rounds = find_runs(folders), decode_section(decoded)
    tasks = _tasks(groups)
    total = sum(
        len(task.config.evaluation.controllers) + sum(map(len, task.groups.values()))
        for task in tasks
    )
    done = 0
    for task in tasks:
        for _ in _play(task, episodes):
            done += 1
            if progress is not None:
                progress(done, total)
    sections: list[Section] = []
    for number, task in enumerate(tasks):
        sections += _sections(task, f"task{number}-")
    sections.append(rounds)
    sections.append(_config_section(tasks))
    facts = provenance()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [
        f"{sum(len(runs) for task in tasks for runs in task.groups.values())} runs of "
        f"{sum(len(task.groups) for task in tasks)} experiments; page made at commit "
        f"{facts['commit']} with {packages}.",
        "Lower latency is better. Intervals are 95 %, with evaluation worlds and training seeds as "
        "crossed random factors; every controller meets the same requests and the same fading.",
    ]
    title = "uara: " + ", ".join(name for task in tasks for name in task.groups)
    write_page(out, title, lines, sections)
    return out


def _tasks(groups: Mapping[str, list[TrainedRun]]) -> list[TaskResults]:
    """Put experiments on the same task together."""
    tasks: dict[str, TaskResults] = {}
    for name, runs in groups.items():
        config = runs[0].config.task
        key = config.config_hash()
        if key not in tasks:
            tasks[key] = TaskResults(config, load_bank(config))
        tasks[key].groups[name] = runs
    return list(tasks.values())


def _play(task: TaskResults, episodes: int | None) -> Iterator[None]:
    """Fill in the rows of policies and rules, yielding after each."""
    physics = Physics.of(task.config.physics)
    for name, runs in task.groups.items():
        rows = []
        for run in runs:
            stored = evaluation_file(run.folder)
            if stored.is_file() and episodes is None:
                rows.append(load_rows(stored))
            elif run.policy.is_file():
                policy = load_policy(run.policy, physics)
                rows.append(evaluate_controller(policy, task.config, task.bank, episodes=episodes))
            else:
                raise UserError(f"{run.folder} holds no policy yet; let its training end first")
            yield
        task.policies[name] = rows
    for name in task.config.evaluation.controllers:
        rule = rule_controller(name, task.config)
        task.rules[name] = evaluate_controller(rule, task.config, task.bank, episodes=episodes)
        yield


def _sections(task: TaskResults, prefix: str) -> list[Section]:
    """Make the sections of one task."""
    name = task.config.name
    return [
        Section(
            f"{prefix}curves",
            f"Learning curves: {name}",
            "Lines are means over seeds, bands their 95 % t intervals.",
            [Part(pictures=_curves(task, prefix))],
        ),
        Section(
            f"{prefix}scores",
            f"Scores: {name}",
            "Frozen episodes on evaluation worlds that no training saw. IQM: mean of the middle "
            f"half of worlds and seeds. P: share of episodes that end sooner than {REFERENCE}'s.",
            [Part(table=score_table(task))],
        ),
        Section(
            f"{prefix}latency",
            f"Latency distributions: {name}",
            "",
            [Part(pictures=_distributions(task, prefix))],
        ),
        Section(
            f"{prefix}maps",
            f"Network over time and decisions: {name}",
            "The first evaluation world. Decision maps hold all choices of "
            "sixteen episodes there, a dot where a device with a request stood.",
            _maps(task, prefix),
        ),
    ]


def _curves(task: TaskResults, prefix: str) -> list[Picture]:
    pictures = []
    for key, label in CURVES.items():
        curves = {
            name: mean_curve([run.series[key] for run in runs])
            for name, runs in task.groups.items()
            if all(key in run.series for run in runs)
        }
        if curves:
            figure = draw_curves(curves, label)
            pictures.append(Picture.of(figure, f"{prefix}{key.replace('/', '-')}", key))
    return pictures


def score_table(task: TaskResults) -> Table:
    """Make the table of scores, best first."""
    rows = [(name, row, row, 1) for name, row in task.rules.items()]
    for name, runs in task.policies.items():
        rows.append((name, pool_seeds(runs, name), runs[0], len(runs)))
    rows.sort(key=lambda entry: entry[1].interval("e2e_latency_s").mean)
    columns = (
        "controller", "observes", "seeds", "episodes", "E2E (s)", "minus reference (s)", "IQM (s)",
        "P", "p95 (s)", "TTFT (s)", "TPOT (ms)", "J/request", "moves/request", "us/decision",
    )  # fmt: skip
    cells = []
    for name, pooled, first, seeds in rows:
        reference = task.rules.get(REFERENCE)
        if reference is not None and len(reference.world) == len(first.world):
            reference = repeat(reference, seeds) if seeds > 1 else reference
        else:
            reference = None
        row: dict[str, Any] = evaluation_row(pooled, reference)
        iqm, better = _robust(pooled, reference)
        cells.append(
            (
                name,
                pooled.observes,
                str(seeds) if name in task.policies else "-",
                str(len(first.world)),
                show_interval(row["e2e_latency_s"]),
                show_interval(row["e2e_minus_reference_s"], "+") if reference is not None else "-",
                iqm,
                better,
                _mean(row, "e2e_p95_s", 1),
                _mean(row, "ttft_s", 1),
                _mean(row, "tpot_s", 1e3, 0),
                _mean(row, "device_energy_j", 1, 1),
                _mean(row, "handovers", 1),
                f"{pooled.decide_s * 1e6:.0f}",
            )
        )
    return Table(columns, cells)


def _robust(rows: EpisodeRows, reference: EpisodeRows | None) -> tuple[str, str]:
    """Write the interquartile mean and the probability of improvement on the reference."""
    values = rows.metrics["e2e_latency_s"]
    known = np.isfinite(values)
    if reference is not None:
        known &= np.isfinite(reference.metrics["e2e_latency_s"])
    seed = None if rows.seed is None else rows.seed[known]
    iqm = interquartile_mean(values[known], rows.world[known], seed)
    if reference is None or rows.controller == reference.controller:
        return show_interval(iqm.as_json()), "-"
    theirs = reference.metrics["e2e_latency_s"][known]
    better = probability_of_improvement(values[known], theirs, rows.world[known], seed)
    return show_interval(iqm.as_json()), show_interval(better.as_json())


def _mean(row: Mapping[str, Any], metric: str, scale: float, digits: int = 2) -> str:
    return f"{scale * row[metric]['mean']:.{digits}f}" if metric in row else "-"


def _distributions(task: TaskResults, prefix: str) -> list[Picture]:
    played = {name: pool_seeds(runs, name) for name, runs in task.policies.items()} | task.rules
    pictures = []
    for metric, label in DISTRIBUTIONS.items():
        values = {n: rows.metrics[metric] for n, rows in played.items() if metric in rows.metrics}
        if values:
            figure = draw_distributions(values, label)
            pictures.append(Picture.of(figure, f"{prefix}ecdf-{metric}", label))
    return pictures


def _maps(task: TaskResults, prefix: str) -> list[Part]:
    """Draw maps of the first policy of each experiment and of the reference rule."""
    physics = Physics.of(task.config.physics)
    controllers = {name: load_policy(runs[0].policy, physics) for name, runs in task.groups.items()}
    if REFERENCE in task.config.evaluation.controllers:
        controllers[REFERENCE] = rule_controller(REFERENCE, task.config)
    parts = []
    for number, (name, controller) in enumerate(controllers.items()):
        played = play_world(controller, task.config, task.bank)
        pictures = [
            Picture.of(figure, f"{prefix}map-{number}-{moment}", f"{name} at {time_s:.1f} s")
            for moment, (time_s, figure) in enumerate(played.maps.items())
        ]
        figure = played.decision_map(f"{name}: servers chosen where")
        caption = f"{len(played.server)} decisions of {name}"
        pictures.append(Picture.of(figure, f"{prefix}decisions-{number}", caption))
        parts.append(Part(title=name, pictures=pictures))
    return parts


def _config_section(tasks: Sequence[TaskResults]) -> Section:
    runs = [run for task in tasks for group in task.groups.values() for run in group]
    parts = [Part(summary=str(run.folder), code=run.config_text) for run in runs]
    return Section("configs", "Resolved configs", "As the run folders hold them.", parts)
