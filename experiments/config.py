"""Tasks and experiments: composes the configs that stand beside the code they configure.

A task (bank, world, physics, evaluation) is frozen and hashed; an experiment names a task, who
controls what, and a learner.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from agents.learners import LearnerConfig
from agents.on_policy import MappoConfig
from agents.training import TrainingConfig
from envs.action import ControlConfig
from envs.batched import RewardConfig
from envs.observation import ObservationConfig
from uara.control.allocation import AllocationConfig
from uara.control.controllers import ControllersConfig
from uara.errors import UserError
from uara.prediction import PhysicsConfig
from uara.radio.bank import BankConfig
from uara.world.config import WorldConfig
from uara.young_fields import dump_without_defaults

PROJECT = Path(__file__).resolve().parent.parent
SHIPPED_ACCEPTANCE = PROJECT / "checkpoints" / "pair" / "acceptance.json"

Model = TypeVar("Model", bound=BaseModel)


class EvaluationConfig(BaseModel):
    """The frozen episodes that tables are made on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    episodes: int = Field(256, gt=0, description="episodes; episode e plays world e mod W")
    seed: int = Field(2026, ge=0, description="key of the episodes' requests")
    controllers: tuple[str, ...] = Field(
        ("random", "max_sinr", "max_compute", "least_loaded", "greedy_latency"),
        description="rows beside the policies: who chooses the servers, and rules for the rest "
        "joined by '+', e.g. greedy_latency+equal_finish+wmmse",
    )
    deadline_s: float = Field(30.0, gt=0, description="goodput counts requests answered within it")

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("deadline_s",))


class DecodeConfig(BaseModel):
    """The real draft/verify runs of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(24, gt=0, description="prompts decoded, text tasks in turn")
    output_tokens: int = Field(64, gt=0, description="tokens per answer")
    world: int = Field(0, ge=0, description="which evaluation world of the bank")
    seed: int = Field(7, ge=0, description="key of arrivals and of sampling")
    controllers: tuple[str, ...] = Field(
        ("least_loaded", "greedy_latency"), description="rows beside the policy"
    )


class TaskConfig(BaseModel):
    """A scenario: bank, world, physics and how it is evaluated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the task")
    bank: BankConfig = Field(BankConfig(), description="channel bank")
    world: WorldConfig = Field(WorldConfig(), description="devices, servers, budgets, requests")
    physics: PhysicsConfig = Field(PhysicsConfig(), description="link, codec, serving mode")
    acceptance: str = Field(
        "shipped", description="`shipped`, or the path of an acceptance table (JSON)"
    )
    allocation: AllocationConfig = Field(
        AllocationConfig(),
        description="rules that a controller uses where its name leaves them open",
    )
    controllers: ControllersConfig = Field(
        ControllersConfig(),
        description="parameters of controllers, or the path of a file that `uara tune` wrote",
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="frozen episodes")
    decode: DecodeConfig = Field(DecodeConfig(), description="real draft/verify runs")

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dump_without_defaults(self, dump, ("controllers",))

    @model_validator(mode="after")
    def _check_agreement(self) -> TaskConfig:
        if self.bank.num_servers != len(self.world.servers):
            raise ValueError(
                f"bank.num_servers is {self.bank.num_servers} but world.servers names "
                f"{len(self.world.servers)}; make them equal"
            )
        if self.bank.slot_s != self.world.slot_s:
            raise ValueError(
                f"bank.slot_s is {self.bank.slot_s} but world.slot_s is {self.world.slot_s}; "
                "make them equal"
            )
        if self.world.horizon_slots > self.bank.num_slots:
            raise ValueError(
                f"world.horizon_slots is {self.world.horizon_slots} but the bank has "
                f"{self.bank.num_slots} slots; shorten the horizon or lengthen the bank"
            )
        return self

    def config_hash(self) -> str:
        """Hash everything that shapes the task: 16 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def acceptance_path(self) -> Path:
        """Resolve the acceptance table."""
        return SHIPPED_ACCEPTANCE if self.acceptance == "shipped" else Path(self.acceptance)


class ExperimentConfig(BaseModel):
    """A task, who controls what, and a learner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the experiment; runs are named after it")
    task: TaskConfig = Field(description="the task, or in YAML the path of its file")
    control: ControlConfig = Field(ControlConfig(), description="which decisions are learned")
    observation: ObservationConfig = Field(
        ObservationConfig(), description="what the actor may read"
    )
    reward: RewardConfig = Field(RewardConfig(), description="reward of a slot")
    learner: LearnerConfig = Field(MappoConfig(), discriminator="kind", description="the learner")
    training: TrainingConfig = Field(TrainingConfig(), description="length and batch of training")
    num_networks: int = Field(64, gt=0, description="networks stepped at once in training")
    native: bool = Field(
        False,
        description="play and observe with compiled code while training: the same to rounding, "
        "two to three times faster; needs a C compiler",
    )
    seed: int = Field(0, ge=0, description="seed of training")

    @field_validator("learner", mode="before")
    @classmethod
    def _default_to_mappo(cls, learner: object) -> object:
        return {"kind": "mappo"} | learner if isinstance(learner, dict) else learner


def load_task(path: Path | str, overrides: list[str] | None = None) -> TaskConfig:
    """Read a task file and apply `k=v` overrides.

    Raises:
        UserError: for a missing file, a wrong key or a value that is not allowed.
    """
    raw = _override(_read_task(Path(path)), overrides or [])
    return _validate(TaskConfig, _read_controllers(raw, Path(path)), Path(path))


def load_experiment(path: Path | str, overrides: list[str] | None = None) -> ExperimentConfig:
    """Read an experiment file; its `task` may be the path of a task file beside it.

    Raises:
        UserError: for a missing file, a wrong key or a value that is not allowed.
    """
    path = Path(path)
    raw = _read_yaml(path)
    if "task" not in raw:
        raise UserError(
            f"{path} names no task, so it is no experiment; give an experiment file, e.g. "
            "experiments/quickstart.yaml"
        )
    if isinstance(raw["task"], str):
        task_path = path.parent / raw["task"]
        raw["task"] = _read_controllers(_read_task(task_path), task_path)
    raw = _override(raw, overrides or [])
    if isinstance(raw["task"], dict):
        _read_controllers(raw["task"], path)
    return _validate(ExperimentConfig, raw, path)


def load_any(path: Path | str, overrides: list[str] | None = None) -> TaskConfig:
    """Read a task, given its own file or that of an experiment on it."""
    path = Path(path)
    if "task" in _read_yaml(path):
        return load_experiment(path, overrides).task
    return load_task(path, overrides)


def kind_of(path: Path | str) -> str | None:
    """Read which kind of file it is, where it says so; tasks and experiments do not.

    Raises:
        UserError: for a missing file.
    """
    kind = _read_yaml(Path(path)).get("kind")
    return kind if isinstance(kind, str) else None


def load_as(model: type[Model], path: Path | str, overrides: list[str] | None = None) -> Model:
    """Read a file of a kind of its own and apply `k=v` overrides.

    Raises:
        UserError: for a missing file, a wrong key or a value that is not allowed.
    """
    return from_options(model, read_options(path, overrides), path)


def from_overrides(model: type[Model], overrides: list[str]) -> Model:
    """Make a config from its defaults and `k=v` overrides.

    Raises:
        UserError: for a wrong key or a value that is not allowed.
    """
    return _validate(model, _override({}, overrides), Path("options"))


def read_options(path: Path | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a file of options and apply `k=v` overrides, without looking at what they are.

    Raises:
        UserError: for a missing file, a file without options or a wrong override.
    """
    return _override(_read_yaml(Path(path)), overrides or [])


def from_options(model: type[Model], raw: dict[str, Any], path: Path | str) -> Model:
    """Make a config from options that were read from a file.

    Raises:
        UserError: for a wrong key or a value that is not allowed.
    """
    return _validate(model, raw, Path(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"config {path} does not exist; `ls experiments/` shows those that do")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no mapping of options; see `uara schema`")
    return raw


def _read_task(path: Path) -> dict[str, Any]:
    """Read a task file on top of the one beside it that it extends, if it names one."""
    names = [path]
    own = _read_yaml(path)
    while "extends" in own:
        path = path.parent / str(own.pop("extends"))
        if path in names:
            raise UserError(f"task {names[0]} extends itself by way of {path}; drop one `extends`")
        names.append(path)
        own = _merge(_read_yaml(path), own)
    return own


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay options over others: groups of options meet, all else is replaced."""
    merged = dict(base)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if both else value
    return merged


def _read_controllers(task: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put in the parameters of controllers where a task names their file.

    A file is looked for beside the config and then in the working directory.
    """
    name = task.get("controllers")
    if isinstance(name, str):
        beside = path.parent / name
        task["controllers"] = _read_yaml(beside if beside.is_file() else Path(name))
    return task


def _override(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` overrides to nested mappings; values are YAML."""
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"override '{text}' is not of the form key=value, e.g. seed=1")
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override '{text}': '{parent}' is no group of options")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"override '{text}': '{value}' is not YAML; close its brackets and quotes"
            ) from error
    return raw


def _validate(model: type[Model], raw: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def one_line(error: ValidationError) -> str:
    """Put the first mistake of a validation into one line: where, given, allowed."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    given = first["input"]
    shown = f" (given: {given})" if not isinstance(given, dict | list | tuple) else ""
    if first["type"] == "extra_forbidden":
        return f"'{where}' is no option{shown}; `uara schema` lists all options"
    more = f"; {len(error.errors()) - 1} more" if len(error.errors()) > 1 else ""
    return f"{where}: {first['msg']}{shown}{more}; `uara schema` explains it"
