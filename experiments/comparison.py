"""Plays several controllers on the same task, simulated or real, and makes the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.policy import load_policy
from experiments.config import PROJECT, TaskConfig
from experiments.decode import DecodeRow, DecodeSetup
from experiments.evaluation import (
    EpisodeRows,
    evaluate_controller,
    evaluation_row,
    load_bank,
)
from experiments.pair.acceptance import measure_acceptance
from experiments.pair.branches import measure_branches
from experiments.wall import WallCheck, play_again
from uara.control.registry import make_controller, read_name
from uara.decoding.exactness import ExactCheck
from uara.decoding.models import (
    SHIPPED_PAIR_FOLDER,
    ModelPair,
    load_pair,
    load_prompts,
    shipped_pair,
)
from uara.decoding.record_files import write_parquet
from uara.decoding.refusals import check_supported
from uara.errors import UserError
from uara.figures.png import write_png
from uara.figures.timeline import draw_timeline
from uara.network import Controller
from uara.prediction import Physics
from uara.radio.bank import ChannelBank

Progress = Callable[[int, int], None]
Row = dict[str, Any]
Source = Path | str  # folder of a model, or `hub:OWNER/NAME@COMMIT`

SHIPPED_PROMPTS = PROJECT / "checkpoints" / "pair" / "prompts.jsonl"
REFERENCE = "greedy_latency"
TIMELINE_S = 20.0  # length of the part of a run that its picture shows, from its first round


def rule_controller(name: str, task: TaskConfig) -> Controller:
    """Make the controller of a name, e.g. greedy_latency+equal_finish, on the task's rules."""
    physics = Physics.of(task.physics)
    return make_controller(name, task.allocation, physics, task.controllers)


def play_all(
    task: TaskConfig,
    bank: ChannelBank,
    rules: Sequence[str],
    policies: Sequence[Path],
    progress: Progress | None = None,
) -> list[EpisodeRows]:
    """Play rules, then policies, on the frozen episodes.

    Raises:
        UserError: for an unknown rule or a missing or foreign policy, before anything is played.
    """
    physics = Physics.of(task.physics)
    controllers: list[Controller] = [rule_controller(name, task) for name in rules]
    controllers += [load_policy(path, physics) for path in policies]
    played = []
    for number, controller in enumerate(controllers):
        if progress is not None:
            progress(number, len(controllers))
        played.append(evaluate_controller(controller, task, bank))
    if progress is not None:
        progress(len(controllers), len(controllers))
    return played


def compare(
    task: TaskConfig,
    bank: ChannelBank,
    rules: Sequence[str],
    policies: Sequence[Path],
    progress: Progress | None = None,
) -> list[Row]:
    """Play rules and policies on the frozen episodes and make a row of each, best first."""
    played = play_all(task, bank, rules, policies, progress)
    reference = next((rows for rows in played if rows.controller == REFERENCE), None)
    rows: list[Row] = []
    for number, result in enumerate(played):
        kind = "rule" if number < len(rules) else "policy"
        rows.append({**evaluation_row(result, reference), "kind": kind})
    return sorted(rows, key=lambda row: float(row["e2e_latency_s"]["mean"]))


def open_pair(draft: Source | None, target: Source | None) -> ModelPair:
    """Load the shipped pair, or another one of which both models are given.

    Raises:
        UserError: if only one model is given, or the pair cannot be loaded.
    """
    if (draft is None) != (target is None):
        raise UserError("give both --draft and --target, or neither for the shipped pair")
    if draft is None or target is None:
        return shipped_pair()
    return load_pair(draft, target)


def decode_with(
    task: TaskConfig,
    policy: Path | None,
    rules: Sequence[str] | None,
    *,
    folder: Path,
    draft: Source | None = None,
    target: Source | None = None,
    prompts: Path = SHIPPED_PROMPTS,
    on_wall: Callable[[DecodeRow, WallCheck], None] | None = None,
    progress: Progress | None = None,
) -> tuple[list[DecodeRow], ExactCheck]:
    """Drive real runs with a policy and rules; write records and a timeline per controller.

    The greedy check runs with the first controller: the policy where there is one.

    Args:
        task: the task; its evaluation world, requests and closed forms.
        policy: trained policy.
        rules: names; the task's by default.
        folder: where `<controller>-{requests,rounds,frames,forwards}.parquet` and the timeline go.
        draft: folder of another draft model, or `hub:OWNER/NAME@COMMIT`.
        target: folder of another target model, or `hub:OWNER/NAME@COMMIT`.
        prompts: decode set.
        on_wall: if given, every run is played again in real processes, and this is told how it
            compares.
        progress: called with runs done and in all.

    Raises:
        UserError: for a missing policy, pair or prompt set, an unknown rule, or an option of the
            world that real runs do not have.
    """
    check_supported(task.world, task.physics)
    physics = Physics.of(task.physics)
    controllers: list[Controller] = [load_policy(policy, physics)] if policy else []
    names = task.decode.controllers if rules is None else rules
    controllers += [rule_controller(name, task) for name in names]
    for name in names:
        _check_mode(name, task)
    if not controllers:
        raise UserError("no controller was given; name one with --controller or give --policy")
    pair = open_pair(draft, target)
    setup = DecodeSetup.of(task, load_bank(task), pair, load_prompts(prompts))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, controller in enumerate(controllers):
        if progress is not None:
            progress(number, len(controllers) + 1)
        row = setup.run(controller)
        rows.append(row)
        stem = folder / row.controller
        for kind in ("requests", "rounds", "frames", "forwards"):
            records = getattr(row.result, kind)
            if records:  # a device alone has no server that runs forwards
                write_parquet(stem.with_name(f"{stem.name}-{kind}.parquet"), records)
        if row.result.rounds:
            start_s = min(record.draft_start_s for record in row.result.rounds)
            figure = draw_timeline(
                row.result.requests,
                row.result.rounds,
                start_s=start_s,
                end_s=start_s + TIMELINE_S,
                title=f"{row.controller}: real draft/verify rounds",
            )
            write_png(figure, stem.with_name(f"{stem.name}-timeline.png"))
        if on_wall is not None:
            check = play_again(
                setup,
                row.result,
                draft=draft or SHIPPED_PAIR_FOLDER / "draft",
                target=target or SHIPPED_PAIR_FOLDER / "target",
            )
            write_parquet(stem.with_name(f"{stem.name}-wall-requests.parquet"), check.wall.requests)
            on_wall(row, check)
    exact = setup.check_greedy(controllers[0])
    if progress is not None:
        progress(len(controllers) + 1, len(controllers) + 1)
    return rows, exact


def _check_mode(name: str, task: TaskConfig) -> None:
    """Refuse a controller that sets the serving mode, which real runs take from the task."""
    mode = read_name(name, task.allocation)[1].mode
    if mode != "task":
        raise UserError(
            f"controller '{name}' sets mode {mode}, but real runs are served in physics.mode "
            f"({task.physics.mode}); drop the mode from the controller"
        )


def calibrate(
    draft: Source | None, target: Source | None, prompts: Path | None, temperature: float
) -> dict[str, Any]:
    """Measure a pair's acceptance on a decode set (the shipped one by default)."""
    pair = open_pair(draft, target)
    return measure_acceptance(pair, load_prompts(prompts or SHIPPED_PROMPTS), temperature)


def branches_of(
    draft: Source | None,
    target: Source | None,
    prompts: Path | None,
    temperature: float,
    max_tokens: int,
) -> dict[str, Any]:
    """Measure guessed corrections and costs of branches on a decode set (the shipped one)."""
    pair = open_pair(draft, target)
    return measure_branches(pair, load_prompts(prompts or SHIPPED_PROMPTS), temperature, max_tokens)
