"""The table of scores: rules, the fair rival and learned policies on a frozen task, row by row.

Each row is one file of per-episode results, `docs/results/scores/TASK/ROW.parquet`, written when it
is finished; the tables are rendered from these files alone. What is there is not played again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq
import torch

from agents.policy import load_policy
from experiments.cards import SHIPPED, ship_policy
from experiments.comparison import rule_controller
from experiments.config import (
    PROJECT,
    ExperimentConfig,
    TaskConfig,
    from_options,
    load_experiment,
    load_task,
    read_options,
)
from experiments.evaluation import BANKS, METRICS, EpisodeRows, evaluate_controller, load_bank
from experiments.runs import RUNS, run_folder
from experiments.sweep import load_rows, run_one, save_rows
from experiments.task_cards import task_file
from uara.control.completion import CompletionConfig
from uara.control.controllers import ControllersConfig
from uara.errors import UserError
from uara.prediction import Physics
from uara.world.config import WorldConfig

FOLDER = PROJECT / "docs" / "results" / "scores"
LEARNED = PROJECT / "experiments" / "learned"
RIVALS = PROJECT / "experiments" / "rivals"
BATCH = 128  # networks played at once
SIMPLE = ("random", "max_sinr", "max_compute", "least_loaded")
FAIR = "completion_greedy"
INFORMED = f"{FAIR}-informed"  # the same with full information: the bound of what knowing is worth
RULES = (
    *SIMPLE, "greedy_latency+server_ar", "greedy_latency+device_only", "greedy_latency",
    "local_greedy", FAIR, INFORMED,
)  # fmt: skip
# Policies of another task that are played without retraining.
TRANSFER = {"uara-60x8": ("uara-30x4-mappo",), "uara-180x20": ("uara-30x4-mappo",)}
STORED = (*METRICS, "e2e_p95_s", "failed_requests")

Done = Callable[[Path], None]


@dataclass(frozen=True)
class Contender:
    """What makes one row of a task's table: a rule, a learner under one seed, a foreign policy."""

    task: str
    name: str
    seed: int | None = None  # of training; None: a rule or a foreign policy
    is_foreign: bool = False

    def path(self, folder: Path) -> Path:
        """Tell where its row is kept."""
        stem = self.name if self.seed is None else f"{self.name}-seed{self.seed}"
        return folder / self.task / f"{stem}.parquet"


def experiments_on(task: str) -> tuple[str, ...]:
    """List the learned experiments on a task by name; files are called TASK-LEARNER.yaml."""
    paths = sorted(LEARNED.glob(f"{task}-*.yaml"))
    return tuple(path.stem for path in paths if load_experiment(path).task.name == task)


def contenders(task: str, seeds: int, learners: Sequence[str] | None = None) -> list[Contender]:
    """List the rows of a task's table.

    Args:
        task: name of a frozen task.
        seeds: of training, 0 .. N-1; 0 leaves learners out.
        learners: which learners, e.g. mappo; all by default.
    """
    config = load_task(task_file(task))
    rules = dict.fromkeys((*RULES, *config.evaluation.controllers))
    rows = [Contender(task, name) for name in rules]
    for name in experiments_on(task):
        if learners is None or name.removeprefix(f"{task}-") in learners:
            rows += [Contender(task, name, seed) for seed in range(seeds)]
    foreign = [name for name in TRANSFER.get(task, ()) if (SHIPPED / name).is_dir()]
    return rows + [Contender(task, name, is_foreign=True) for name in foreign]


def with_rivals(task: TaskConfig) -> TaskConfig:
    """Return the task with the parameters that its rivals have (`experiments/rivals/`)."""
    read: dict[str, object] = {}
    for path in sorted(RIVALS.glob(f"{task.name}-*.yaml")):
        read |= read_options(path)
    if not read:
        return task
    controllers = from_options(ControllersConfig, read, RIVALS / task.name)
    return task.model_copy(update={"controllers": controllers})


def informed(task: TaskConfig) -> TaskConfig:
    """Return the task with nothing hidden: gains of now, filtered, and the true machines.

    Its fair controller estimates nothing and trusts what it is told.
    """
    own = task.controllers.completion_greedy
    names = ("acceptance", "lengths", "profile", "trend", "heading")
    plain = own.model_copy(update={name: getattr(CompletionConfig(), name) for name in names})
    known = ("csi_delay_slots", "gain_filter_s", "believed")
    world = {name: WorldConfig.model_fields[name].default for name in known}
    return task.model_copy(
        update={
            "controllers": task.controllers.model_copy(update={FAIR: plain}),
            "world": task.world.model_copy(update=world),
        }
    )


def play(contender: Contender, folder: Path, runs: Path, banks: Path) -> Path:
    """Make one row, unless it is there; a learner is trained first and seed 0 is shipped.

    Returns:
        The file of the row.

    Raises:
        UserError: if the run's folder holds a run of another config.
    """
    torch.set_num_threads(1)
    path = contender.path(folder)
    task = load_task(task_file(contender.task))
    if contender.seed is None and not contender.is_foreign:
        task = with_rivals(task)
    if path.is_file() and stored_hash(path) == task.config_hash():
        return path
    if contender.seed is not None:
        rows = _learned_rows(contender, runs, banks)
    else:
        rows = _rule_rows(contender, task, banks)
    kept = {name: rows.metrics[name] for name in STORED if name in rows.metrics}
    save_rows(
        replace(rows, controller=contender.name, metrics=kept), path, task_hash=task.config_hash()
    )
    return path


def _learned_rows(contender: Contender, runs: Path, banks: Path) -> EpisodeRows:
    config = learned_config(contender)
    rows = load_rows(run_one(config, runs, banks))
    if contender.seed == 0 and config.learner.kind == "mappo":
        ship_policy(config, run_folder(config, runs), rows)
    return rows


def learned_config(contender: Contender) -> ExperimentConfig:
    """Load the experiment of a learned row."""
    return load_experiment(LEARNED / f"{contender.name}.yaml", [f"seed={contender.seed}"])


def _rule_rows(contender: Contender, task: TaskConfig, banks: Path) -> EpisodeRows:
    bank = load_bank(task, banks)
    if contender.is_foreign:
        policy = SHIPPED / contender.name / "policy.pt"
        controller = load_policy(policy, Physics.of(task.physics))
        return evaluate_controller(controller, task, bank, batch=BATCH)
    knows_all = contender.name == INFORMED
    own = informed(task) if knows_all else task
    controller = rule_controller(FAIR if knows_all else contender.name, own)
    return evaluate_controller(controller, own, bank, batch=BATCH, true_acceptance=knows_all)


def stored_hash(path: Path) -> str:
    """Read the hash of the task that a stored row was made on."""
    return str(json.loads(pq.read_schema(path).metadata[b"uara-task"]))


def make_rows(
    tasks: Sequence[str],
    *,
    seeds: int,
    learners: Sequence[str] | None = None,
    workers: int = 1,
    folder: Path = FOLDER,
    runs: Path = RUNS,
    banks: Path = BANKS,
    done: Done | None = None,
) -> list[Path]:
    """Make the rows of tasks; what was finished before is kept, what was cut goes on.

    Args:
        tasks: names of frozen tasks.
        seeds: of training, 0 .. N-1.
        learners: which learners; all by default.
        workers: processes, one thread each; with 1 this one does it all.
        folder: of the rows.
        runs: folder of training runs.
        banks: folder of channel banks; they are built here first.
        done: called with each finished row.

    Returns:
        Files of the rows, in the order of the tasks.
    """
    asked = [c for task in tasks for c in contenders(task, seeds, learners)]
    for task in tasks:
        load_bank(load_task(task_file(task)), banks)
    tell = done or (lambda path: None)
    where = (folder, runs, banks)
    if workers == 1:
        files = []
        for contender in asked:
            files.append(play(contender, *where))
            tell(files[-1])
        return files
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(play, contender, *where) for contender in asked]
        for future in as_completed(futures):
            tell(future.result())
    return [future.result() for future in futures]


@dataclass(frozen=True)
class StoredRow:
    """What is stored of one row."""

    name: str
    is_learned: bool  # on this task; policies of other tasks count as rules
    runs: tuple[EpisodeRows, ...]  # one per seed of training


def stored_rows(task: str, folder: Path = FOLDER) -> dict[str, StoredRow]:
    """Read what is stored of a task by name; seeds of training in order.

    Raises:
        UserError: if nothing is stored, or a row belongs to another version of the task.
    """
    config = load_task(task_file(task))
    now = {config.config_hash(), with_rivals(config).config_hash()}
    rows: dict[str, StoredRow] = {}
    for path in sorted((folder / task).glob("*.parquet"), key=_name_and_seed):
        if stored_hash(path) not in now:
            raise UserError(
                f"{path} is a row of another version of task {task}; make it again with "
                f"`uara scores {task}`"
            )
        name, seed = _name_and_seed(path)
        before = rows[name].runs if name in rows else ()
        rows[name] = StoredRow(name, seed >= 0, (*before, load_rows(path)))
    if FAIR not in rows:
        raise UserError(
            f"{folder / task} holds no row of {FAIR}; make it with `uara scores {task}`"
        )
    return rows


def _name_and_seed(path: Path) -> tuple[str, int]:
    """Take a file's name apart; -1 where nothing was trained."""
    name, is_learned, seed = path.stem.rpartition("-seed")
    return (name, int(seed)) if is_learned else (path.stem, -1)
