"""Acceptance of draft tokens, measured per pair, rule and task: alpha = accepted / tested."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from uara.errors import UserError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskAcceptance:
    """Acceptance of one task type under one rule."""

    mean: float
    std: float  # between prompts


@dataclass(frozen=True)
class AcceptanceTable:
    """Measured acceptance of one pair at one temperature."""

    pair: str
    temperature: float
    rules: dict[str, dict[str, TaskAcceptance]]

    def of(self, rule: str, task: str) -> TaskAcceptance:
        """Look one figure up.

        Raises:
            UserError: if the rule or the task was not measured.
        """
        if rule not in self.rules:
            raise UserError(
                f"acceptance of rule '{rule}' was not measured for pair '{self.pair}'; "
                f"measured: {', '.join(self.rules)}; measure it with `uara pair calibrate`"
            )
        if task not in self.rules[rule]:
            raise UserError(
                f"acceptance of task '{task}' was not measured for pair '{self.pair}'; "
                f"measured: {', '.join(self.rules[rule])}; rename the task or measure it"
            )
        return self.rules[rule][task]

    @property
    def tasks(self) -> tuple[str, ...]:
        """List the task types that were measured."""
        return tuple(next(iter(self.rules.values())))


def load_acceptance(path: Path) -> AcceptanceTable:
    """Read the table that `uara pair calibrate` wrote.

    Raises:
        UserError: if the file is missing, is no table, or has another format version.
    """
    if not path.is_file():
        raise UserError(
            f"acceptance table {path} does not exist; make it with `uara pair calibrate`"
        )
    try:
        raw = json.loads(path.read_text())
        version = raw["format_version"]
        rules = {
            rule: {
                task: TaskAcceptance(mean=float(row["mean"]), std=float(row["std"]))
                for task, row in tasks.items()
            }
            for rule, tasks in raw["rules"].items()
        }
        table = AcceptanceTable(raw["pair"], float(raw["temperature"]), rules)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not an acceptance table ({error!r}); make it anew") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, allowed: {FORMAT_VERSION}")
    return table
