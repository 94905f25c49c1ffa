"""Cards of the frozen tasks: what each asks, and what `uara diagnose` says of it.

A diagnosis is kept as `docs/results/tasks/NAME.json`; `docs/tasks.md` is written from these alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import PROJECT, load_task
from experiments.diagnose import Diagnosis, diagnose
from experiments.evaluation import BANKS, load_bank
from experiments.runs import write_json, write_text
from uara.errors import UserError

TASKS = PROJECT / "experiments" / "tasks"
FOLDER = PROJECT / "docs" / "results" / "tasks"
PAGE = PROJECT / "docs" / "tasks.md"
# Bases that other tasks extend; they are no tasks of the set.
BASES = ("quickstart", "uara-12x3")
BLOCK = re.compile(r"(<!-- tasks -->\n).*?(<!-- /tasks -->)", re.DOTALL)
Progress = Callable[[int, int], None]


def frozen_tasks() -> tuple[str, ...]:
    """List the frozen tasks by name."""
    return tuple(sorted(path.stem for path in TASKS.glob("*.yaml") if path.stem not in BASES))


def task_file(name: str) -> Path:
    """Find the file of a frozen task.

    Raises:
        UserError: if there is none of that name.
    """
    path = TASKS / f"{name}.yaml"
    if name not in frozen_tasks():
        raise UserError(f"task '{name}' is unknown; allowed: {', '.join(frozen_tasks())}")
    return path


def intent(path: Path) -> str:
    """Read what a task asks: the comment that its file opens with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def diagnose_tasks(
    names: Sequence[str],
    *,
    episodes: int,
    modes: Sequence[str],
    folder: Path = FOLDER,
    banks: Path = BANKS,
    progress: Progress | None = None,
) -> list[Path]:
    """Diagnose tasks on their tuning worlds; what is there already for the same task stays.

    Args:
        names: of frozen tasks.
        episodes: per figure.
        modes: serving modes to play beside `server_ar` and the task's own.
        folder: where the diagnoses are kept.
        banks: folder of channel banks.
        progress: called with (controllers played, controllers in all) of a task.

    Returns:
        Files of the diagnoses, in the order given.
    """
    files = []
    for name in names:
        task, path = load_task(task_file(name)), folder / f"{name}.json"
        files.append(path)
        if path.is_file() and read_diagnosis(path)["task_hash"] == task.config_hash():
            continue
        bank = load_bank(task, banks)
        result = diagnose(
            task, bank, split="tuning", episodes=episodes, modes=modes, progress=progress
        )
        facts = {"task_hash": task.config_hash(), "bank_hash": task.bank.config_hash()}
        write_json(path, {"task": name, "episodes": episodes, **facts, **_content(result)})
    return files


def read_diagnosis(path: Path) -> dict[str, Any]:
    """Read a kept diagnosis.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds no diagnosis ({error}); make it with `uara tasks {path.stem}`"
        ) from error
    return content


def _content(result: Diagnosis) -> dict[str, Any]:
    return {
        "findings": [finding.__dict__ for finding in result.findings],
        "modes": [row.__dict__ for row in result.modes],
        "spread": result.spread,
        "share_of_time": result.time_use.share,
        "verdict": result.verdict,
    }


def card(name: str, content: dict[str, Any]) -> str:
    """Write the card of a task: what it asks, the figures, which rules it misses."""
    modes = ", ".join(
        f"`{row['mode']}` {row['e2e_s']:.2f}"
        + ("" if row["is_lossless"] else " (draft alone, lossy)")
        for row in content["modes"]
    )
    spread = ", ".join(f"`{rule}` {seconds:.2f}" for rule, seconds in content["spread"].items())
    used = {part: share for part, share in content["share_of_time"].items() if share >= 0.02}
    time = ", ".join(f"{part} {100 * share:.0f} %" for part, share in used.items())
    lines = [
        f"## {name}",
        "",
        intent(task_file(name)),
        "",
        f"E2E in s, {content['episodes']} episodes on tuning worlds: {spread}; `greedy_latency` by "
        f"mode: {modes}. Time under it: {time}.",
        "",
        "| figure | per cent | asked for | holds |",
        "| --- | ---: | --- | --- |",
    ]
    for row in content["findings"]:
        holds = "yes" if row["holds"] else "**no**"
        lines.append(f"| {row['name']} | {row['percent']:+.1f} | {row['rule']} | {holds} |")
    return "\n".join((*lines, "", content["verdict"], ""))


def fill_page(text: str, names: Sequence[str], folder: Path = FOLDER) -> str:
    """Put the cards of tasks between the markers of the page.

    Raises:
        UserError: if a diagnosis is missing.
    """
    cards = "\n".join(card(name, read_diagnosis(folder / f"{name}.json")) for name in names)
    return BLOCK.sub(lambda block: f"{block[1]}{cards}{block[2]}", text)


def write_page(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write the page anew from the diagnoses that there are."""
    names = [name for name in frozen_tasks() if (folder / f"{name}.json").is_file()]
    write_text(page, fill_page(page.read_text(encoding="utf-8"), names, folder))
