"""Paper 1's comparison on its one-slot problem P1: associations x allocators over M and E.

Shape legend: B drops, M devices, E servers.

Every row of a setting meets the same B drops. Reductions of mean latency are taken drop by drop
against the three baselines of arXiv 2511.01695, which share bands and servers equally.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from experiments.statistics import Interval, mean_interval
from uara.control.p1.allocators import ALLOCATORS, AllocatorName
from uara.control.p1.associations import ASSOCIATIONS
from uara.control.p1.bound import latency_bound_s
from uara.control.p1.drop import site_distance_m
from uara.control.p1.instances import draw_problem, gains_from_bank
from uara.control.p1.problem import Problem, excess, mean_latency_s
from uara.control.p1.readings import P1Config
from uara.errors import UserError
from uara.radio.bank import BankConfig, build_or_load

BASELINES = ("random", "max_sinr", "max_compute")
BASELINE_ALLOCATOR: AllocatorName = "uniform"
BOUND = "lower bound"
PAPER_MEAN_PERCENT = 23.7
PAPER_MAX_PERCENT = 28.0

Progress = Callable[[int, int], None]
Setting = tuple[int, int]  # devices, servers


class P1Experiment(BaseModel):
    """What to compare on P1, at which sizes, under which readings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uara-p1"] = Field(description="tells this file from a task or an experiment")
    name: str = Field("uara-p1", description="title of the tables")
    readings: P1Config = Field(P1Config(), description="how P1 is read")
    devices: tuple[int, ...] = Field(
        (30, 60, 90, 120, 150, 180), min_length=1, description="M, at `servers_fixed` servers"
    )
    servers: tuple[int, ...] = Field(
        (4, 8, 12, 16, 20), min_length=1, description="E, at `devices_fixed` devices"
    )
    devices_fixed: int = Field(90, gt=0, description="M while E varies (the paper's is not given)")
    servers_fixed: int = Field(8, gt=0, description="E while M varies (the paper's is not given)")
    drops: int = Field(16, ge=2, description="B, instances per setting")
    seed: int = Field(2026, ge=0, description="key of all draws")
    associations: tuple[str, ...] = Field(
        (*BASELINES, "least_loaded", "greedy", "tma", "tma_moves"), description="rules for X"
    )
    allocators: tuple[AllocatorName, ...] = Field(
        ("uniform", "square_root", "exact", "min_max"), description="rules for Y and Z"
    )
    channel: Literal["drop", "bank"] = Field(
        "drop",
        description="drop: path loss and shadowing of TR 38.901 UMi; bank: a Sionna bank per "
        "setting, built on first use",
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="names of other readings, and what they change in `readings`"
    )
    variant_devices: tuple[int, ...] = Field(
        (30, 120), min_length=1, description="M of the table of variants, at `servers_fixed`"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.associations if name not in ASSOCIATIONS]
        if unknown:
            raise ValueError(
                f"association '{unknown[0]}' is unknown; allowed: {', '.join(ASSOCIATIONS)}"
            )
        missing = [name for name in BASELINES if name not in self.associations]
        if missing or BASELINE_ALLOCATOR not in self.allocators:
            raise ValueError(
                f"reductions need {', '.join(BASELINES)} and allocator {BASELINE_ALLOCATOR}; "
                "add them"
            )
        for name in self.variants:
            try:
                self.readings_of(name)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"variant '{name}': {where}: {first['msg']}") from error
        return self

    def readings_of(self, variant: str) -> P1Config:
        """Change the readings as a variant says."""
        return P1Config.model_validate(self.readings.model_dump() | self.variants[variant])

    @property
    def settings(self) -> tuple[Setting, ...]:
        """List the sizes of both sweeps, each once."""
        by_devices = [(m, self.servers_fixed) for m in self.devices]
        by_servers = [(self.devices_fixed, e) for e in self.servers]
        return tuple(dict.fromkeys(by_devices + by_servers))

    def bank_config(self, setting: Setting) -> BankConfig:
        """Describe the bank of a setting: one slot, one world per drop."""
        devices, servers = setting
        return BankConfig(
            num_devices=devices,
            num_servers=servers,
            num_slots=1,
            inter_site_distance_m=site_distance_m(servers, self.readings.area_side_m),
            carrier_hz=self.readings.carrier_hz,
            bandwidth_hz=self.readings.bandwidth_hz / self.readings.num_bands(servers),
            fading="large_scale",
            train=0,
            tuning=0,
            validation=0,
            evaluation=self.drops,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Cell:
    """One association with one allocator (or the bound) in one setting."""

    setting: Setting
    association: str
    allocator: str
    latency_s: NDArray[np.float64]  # (B,) mean over devices, as read

    @property
    def row(self) -> tuple[str, str]:
        """Name the row of the table."""
        return self.association, self.allocator


def generator_of(seed: int, setting: Setting) -> torch.Generator:
    """Make the generator of a setting; settings do not share draws."""
    devices, servers = setting
    return torch.Generator().manual_seed(seed * 1_000_003 + devices * 1_009 + servers)


def draw_setting(
    config: P1Experiment, readings: P1Config, setting: Setting, banks: Path = Path("banks")
) -> Problem:
    """Draw the drops of a setting; every reading of it meets the same."""
    gain: Tensor | None = None
    if config.channel == "bank":
        gain = gains_from_bank(build_or_load(config.bank_config(setting), banks))
    generator = generator_of(config.seed, setting)
    return draw_problem(readings, config.drops, *setting, generator, gain)


def play(
    problem: Problem, setting: Setting, rows: Sequence[tuple[str, AllocatorName]], seed: int
) -> list[Cell]:
    """Solve the drops of a setting by each association and allocator, and bound them."""
    cells = []
    servers: dict[tuple[str, AllocatorName], Tensor] = {}
    for association, allocator in rows:
        # Rules search for `min_max` as for `square_root`.
        searched: AllocatorName = "square_root" if allocator == "min_max" else allocator
        if (association, searched) not in servers:
            generator = generator_of(seed + 1, setting)
            servers[association, searched] = ASSOCIATIONS[association](problem, searched, generator)
        server = servers[association, searched]
        shares = ALLOCATORS[allocator](problem, server)
        worst = float(excess(problem, server, shares).max())
        assert worst <= 1e-9, f"{association} with {allocator} exceeds a budget by {worst}"
        latency = mean_latency_s(problem, server, shares)
        cells.append(Cell(setting, association, allocator, latency.numpy()))
    return [*cells, Cell(setting, BOUND, "any", latency_bound_s(problem).numpy())]


def run_grid(
    config: P1Experiment, banks: Path = Path("banks"), progress: Progress | None = None
) -> list[Cell]:
    """Play the whole grid of associations and allocators in all settings."""
    rows = [(x, y) for x in config.associations for y in config.allocators]
    cells = []
    for number, setting in enumerate(config.settings):
        problem = draw_setting(config, config.readings, setting, banks)
        cells += play(problem, setting, rows, config.seed)
        if progress is not None:
            progress(number + 1, len(config.settings))
    return cells


def reduction(
    cells: Sequence[Cell], row: tuple[str, str], baseline: str
) -> Mapping[Setting, NDArray[np.float64]]:
    """Compute by how much a row is below a baseline, per setting and drop, in per cent."""
    mine = {cell.setting: cell.latency_s for cell in cells if cell.row == row}
    theirs = {c.setting: c.latency_s for c in cells if c.row == (baseline, BASELINE_ALLOCATOR)}
    return {s: 100 * (1 - mine[s] / theirs[s]) for s in mine}


@dataclass(frozen=True)
class Reductions:
    """How far a row is below the baselines, in per cent."""

    row: tuple[str, str]
    against: Mapping[str, Interval]  # per baseline, mean over settings
    mean: Interval  # over baselines and settings
    largest: Mapping[str, float]  # per baseline, over settings

    def as_json(self) -> dict[str, object]:
        """Return a flat row."""
        return {
            "kind": "reduction_percent",
            "association": self.row[0],
            "allocator": self.row[1],
            "mean_of_three": self.mean.as_json(),
            **{f"against_{name}": cell.as_json() for name, cell in self.against.items()},
            **{f"largest_against_{name}": value for name, value in self.largest.items()},
        }


def reductions(cells: Sequence[Cell], row: tuple[str, str]) -> Reductions:
    """Average reductions over settings.

    Drops of different settings are independent, so drop b of all settings makes one repetition.
    """
    table = {
        name: np.stack(list(reduction(cells, row, name).values())) for name in BASELINES
    }  # (settings, B)
    drops = np.arange(next(iter(table.values())).shape[1])
    against = {name: mean_interval(values.mean(0), drops) for name, values in table.items()}
    together = np.mean([values.mean(0) for values in table.values()], axis=0)
    largest = {name: float(values.mean(1).max()) for name, values in table.items()}
    return Reductions(row, against, mean_interval(together, drops), largest)


@dataclass(frozen=True)
class Variant:
    """What a reading makes of the comparison, in per cent below the baselines' mean latency."""

    name: str
    matching: Reductions  # tma, equal shares
    both: Reductions  # tma, exact shares: the paper's association with the best shares there are
    best: Reductions  # tma_moves, exact shares
    bound: Reductions
    shares: float  # what exact shares bring over equal ones under tma


VARIANT_ROWS: tuple[tuple[str, AllocatorName], ...] = (
    *((name, BASELINE_ALLOCATOR) for name in BASELINES),
    ("tma", "uniform"),
    ("tma", "exact"),
    ("tma_moves", "exact"),
)


def run_variants(
    config: P1Experiment, banks: Path = Path("banks"), progress: Progress | None = None
) -> list[Variant]:
    """Play the baselines, the matching and the best association under each reading."""
    variants = []
    names = ["as configured", *config.variants]
    for number, name in enumerate(names):
        readings = config.readings if number == 0 else config.readings_of(name)
        cells: list[Cell] = []
        for devices in config.variant_devices:
            setting = (devices, config.servers_fixed)
            problem = draw_setting(config, readings, setting, banks)
            cells += play(problem, setting, VARIANT_ROWS, config.seed)
        equal, best = (
            {c.setting: c.latency_s for c in cells if c.row == ("tma", allocator)}
            for allocator in ("uniform", "exact")
        )
        shares = float(np.mean([100 * (1 - best[s] / equal[s]) for s in equal]))
        found = Variant(
            name,
            matching=reductions(cells, ("tma", "uniform")),
            both=reductions(cells, ("tma", "exact")),
            best=reductions(cells, ("tma_moves", "exact")),
            bound=reductions(cells, (BOUND, "any")),
            shares=shares,
        )
        variants.append(found)
        if progress is not None:
            progress(number + 1, len(names))
    return variants


def refuse_options(policy: Sequence[Path] | None, controller: Sequence[str] | None) -> None:
    """Refuse what belongs to tasks.

    Raises:
        UserError: if a policy or a controller is named.
    """
    if policy or controller:
        raise UserError(
            "--policy and --controller are for tasks, this file is of kind uara-p1; name its rules "
            "by associations=[...] and allocators=[...]"
        )
