"""Tunes a controller's parameters on the tuning worlds of a task; evaluation worlds stay unseen.

Successive halving: many parameter sets on few episodes, the best third of them on three times as
many, and so on (Jamieson and Talwalkar, arXiv 1502.07943). All sets meet the same episodes.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from experiments.comparison import REFERENCE, rule_controller
from experiments.config import TaskConfig
from experiments.evaluation import EpisodeRows, evaluate_controller
from experiments.runs import write_json, write_text
from uara.control.controllers import ControllersConfig
from uara.errors import UserError
from uara.radio.bank import ChannelBank

FORMAT_VERSION = 1
KEPT = 3  # one of so many goes on, to so many times the episodes

Parameters = dict[str, float | int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """Where a parameter is looked for, evenly."""

    low: float
    high: float
    whole: bool = False

    def draw(self, draw: random.Random) -> float | int:
        """Draw a value."""
        if self.whole:
            return draw.randint(int(self.low), int(self.high))
        return round(draw.uniform(self.low, self.high), 3)


SPANS: dict[str, dict[str, Span]] = {
    "completion_greedy": {
        "harm_weight": Span(0.25, 2.0),
        "switching_margin_s": Span(0.0, 8.0),
        "sweeps": Span(1, 2, whole=True),
    },
    "local_greedy": {
        "harm_weight": Span(0.0, 3.0),
        "switching_margin_s": Span(2.0, 30.0),
    },
}


class TuningConfig(BaseModel):
    """How long to look, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    controller: str = Field("completion_greedy", description="whose parameters are tuned")
    trials: int = Field(24, gt=0, description="parameter sets; the first is the task's own")
    episodes: int = Field(16, gt=0, description="episodes that each of them plays")
    fresh_episodes: int = Field(
        128, gt=0, description="other episodes, on the tuning worlds too, that judge the best"
    )
    seed: int = Field(0, ge=0, description="of the search and of the episodes")


@dataclass(frozen=True)
class Trial:
    """What a parameter set reached."""

    number: int
    episodes: int
    parameters: Parameters
    e2e_s: float


@dataclass(frozen=True)
class Tuning:
    """What came of a search."""

    trials: list[Trial]  # in the order played
    best: Trial
    rows: list[EpisodeRows]  # on fresh episodes: tuned, as in the task, the reference


def rungs(trials: int, episodes: int) -> list[tuple[int, int]]:
    """List how many parameter sets play how many episodes, from the first round to the last."""
    plan = [(trials, episodes)]
    while plan[-1][0] > KEPT:
        plan.append((math.ceil(plan[-1][0] / KEPT), plan[-1][1] * KEPT))
    return plan


def with_parameters(task: TaskConfig, controller: str, parameters: Parameters) -> TaskConfig:
    """Return the task with some parameters of a controller replaced."""
    own = getattr(task.controllers, controller).model_dump() | parameters
    controllers = task.controllers.model_dump() | {controller: own}
    return task.model_copy(update={"controllers": ControllersConfig.model_validate(controllers)})


def draw_parameters(task: TaskConfig, config: TuningConfig) -> list[Parameters]:
    """Draw the parameter sets of a search; the first is what the task has.

    Raises:
        UserError: if the controller has nothing to tune.
    """
    if config.controller not in SPANS:
        raise UserError(
            f"controller '{config.controller}' has no parameters to tune; allowed: "
            f"{', '.join(SPANS)}"
        )
    draw, spans = random.Random(config.seed), SPANS[config.controller]
    own = getattr(task.controllers, config.controller)
    sets: list[Parameters] = [{name: getattr(own, name) for name in spans}]
    while len(sets) < config.trials:
        sets.append({name: span.draw(draw) for name, span in spans.items()})
    return sets


class TrialFile:
    """The trials of a search as they finish; a search that was killed goes on from it."""

    def __init__(self, path: Path, task: TaskConfig, config: TuningConfig) -> None:
        """Read what is there.

        Raises:
            UserError: if the file is damaged or belongs to another search.
        """
        self._path = path
        self._search = {
            "format_version": FORMAT_VERSION,
            "task_hash": task.config_hash(),
            **config.model_dump(include={"controller", "trials", "episodes", "seed"}),
        }
        self.trials: list[Trial] = []
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                search, self.trials = content["search"], [Trial(**t) for t in content["trials"]]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} holds no trials ({error!r}); remove it") from error
            if search != self._search:
                raise UserError(
                    f"{path} holds the trials of another search (task, controller, trials, "
                    "episodes or seed differ); remove it or name another --out"
                )

    def find(self, number: int, episodes: int) -> Trial | None:
        """Return a trial that was played."""
        wanted = (number, episodes)
        return next((t for t in self.trials if (t.number, t.episodes) == wanted), None)

    def add(self, trial: Trial) -> None:
        """Keep a trial."""
        self.trials.append(trial)
        content: dict[str, Any] = {"search": self._search, "trials": list(map(asdict, self.trials))}
        write_json(self._path, content)


def tune(
    task: TaskConfig,
    bank: ChannelBank,
    config: TuningConfig,
    out: Path,
    progress: Progress | None = None,
) -> Tuning:
    """Search, write the best parameters, and judge them on fresh episodes.

    Args:
        task: whose tuning worlds are played; its own parameters are the first trial.
        bank: of the task.
        config: of the search.
        out: YAML of the best parameters, for `controllers:` of a task; beside it the trials.
        progress: called with episodes played and in all.

    Raises:
        UserError: for a controller without parameters, a bank without tuning worlds, or trials of
            another search.
    """
    sets = draw_parameters(task, config)
    player = _Player(bank, config, progress)
    kept = TrialFile(out.with_suffix(".trials.json"), task, config)
    best = _search(task, config, sets, kept, player)
    tuned = with_parameters(task, config.controller, best.parameters)
    write_text(out, _as_yaml(tuned, config))
    rows = [
        player.play(what, name, config.fresh_episodes, fresh=True)
        for what, name in (
            (tuned, config.controller), (task, config.controller), (task, REFERENCE),
        )
    ]  # fmt: skip
    return Tuning(kept.trials, best, rows)


class _Player:
    """Plays controllers on the tuning worlds and reports how far it is."""

    def __init__(self, bank: ChannelBank, config: TuningConfig, progress: Progress | None) -> None:
        self._bank, self._seed, self._progress = bank, config.seed, progress
        searched = sum(count * part for count, part in rungs(config.trials, config.episodes))
        self._total, self._done = searched + 3 * config.fresh_episodes, 0

    def play(self, task: TaskConfig, name: str, episodes: int, *, fresh: bool) -> EpisodeRows:
        """Play episodes of the search, or fresh ones."""
        controller = rule_controller(name, task)
        seed = 2 * self._seed + fresh
        rows = evaluate_controller(
            controller, task, self._bank, split="tuning", episodes=episodes, seed=seed
        )
        self.advance(episodes)
        return rows

    def advance(self, episodes: int) -> None:
        """Report episodes that are done."""
        self._done += episodes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _search(
    task: TaskConfig,
    config: TuningConfig,
    sets: list[Parameters],
    kept: TrialFile,
    player: _Player,
) -> Trial:
    """Halve the field until few are left, and return the best of them."""
    numbers, field = list(range(config.trials)), list[Trial]()
    for count, episodes in rungs(config.trials, config.episodes):
        field = []
        for number in numbers[:count]:
            trial = kept.find(number, episodes)
            if trial is None:
                tried = with_parameters(task, config.controller, sets[number])
                rows = player.play(tried, config.controller, episodes, fresh=False)
                mean = rows.interval("e2e_latency_s").mean
                trial = Trial(number, episodes, sets[number], mean)
                kept.add(trial)
            else:
                player.advance(episodes)
            field.append(trial)
        field.sort(key=lambda trial: (trial.e2e_s, trial.number))
        numbers = [trial.number for trial in field]
    return field[0]


def _as_yaml(task: TaskConfig, config: TuningConfig) -> str:
    """Write a controller's parameters as a task's `controllers:` takes them."""
    own = getattr(task.controllers, config.controller).model_dump(mode="json", exclude_none=True)
    head = (
        f"# {config.controller} on {task.name}: the best of {config.trials} parameter sets on the "
        f"tuning worlds (seed {config.seed})\n"
    )
    return head + yaml.safe_dump({config.controller: own}, sort_keys=False)
