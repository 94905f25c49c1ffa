"""The speeds of PicoSpec (arXiv 2603.19133) by the runtime's own machines under a virtual clock.

`python -m experiments.picospec` prints the four cells of its Table 1, the ablations of Tables 2 and
3, the cells with branches, and sweeps over round trip, bandwidth and draft length. Tokens pass with
a fixed probability; times scatter; everything else is the runtime that serves real models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.config import load_as
from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.nodes import Jitter
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.decoding.verifier import Contract
from uara.errors import UserError
from uara.files import whole_file
from uara.serving.hardware import ForwardTime, get_phone

CONFIG = Path(__file__).parent / "papers" / "picospec.yaml"
TUNING_SEED = 1000
FIT_STEPS = 6


class Cell(BaseModel):
    """One column of the paper's Table 1; speeds in tokens per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="pair and data set")
    pair: str = Field(description="cells of one pair share an overhead")
    device: str = Field(description="profile whose draft step is used")
    ar_tokens_per_s: float = Field(gt=0, description="plain decoding of the target")
    alpha: float = Field(gt=0, lt=1, description="accepted over tested tokens, from the paper")
    draft_length: int = Field(gt=0, description="of the paper")
    vocab_size: int = Field(gt=1, description="entries of a row that goes up unless split")
    published: float = Field(gt=0, description="full protocol")
    without_parallel: float = Field(gt=0, description="without parallel drafting")
    without_fast: float = Field(gt=0, description="without fast verification")
    without_split: float = Field(gt=0, description="without separate rejection sampling")
    target: float = Field(gt=0, description="speed over plain decoding that one chain should reach")
    branch_target: float = Field(
        gt=0, description="speed over plain decoding with branches, at a hit rate of 0.65"
    )
    branch_stretch: float = Field(gt=0, description="the same, hoped for")
    is_fitted: bool = Field(False, description="whether round trip and overhead are fitted on it")


class PicoSpecConfig(BaseModel):
    """Timing and size of the reproduction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: tuple[Cell, ...] = Field(description="columns of the table")
    rtt_grid_s: tuple[float, ...] = Field(
        (0.0475, 0.045, 0.0425, 0.04, 0.0375, 0.035),
        description="mean round trips tried, largest first; T_verify of stop-and-wait less a plain "
        "forward is 47 to 49 ms in three cells",
    )
    link_bps: float = Field(122e6, gt=0, description="each way, from the ablation's extra time")
    draft_sd: float = Field(0.08, ge=0, description="scatter of a draft step, relative")
    forward_sd: float = Field(0.03, ge=0, description="scatter of a forward, relative")
    path_mean_s: float = Field(
        3e-3,
        ge=0,
        description="mean of the part of each way that scatters; a quarter of the round "
        "trip at most",
    )
    tokens: int = Field(4000, gt=0, description="per printed figure")
    session_tokens: int = Field(500, gt=1, description="answer length")
    sweep_rtt_s: tuple[float, ...] = Field(
        (0.005, 0.02, 0.05, 0.1, 0.15, 0.2), description="round trips of the sweep"
    )
    sweep_bps: tuple[float, ...] = Field(
        (0.5e6, 1e6, 2e6, 5e6, 20e6, 100e6), description="bandwidths of the sweep, each way"
    )
    max_draft_length: int = Field(8, gt=0, description="longest draft of the sweep")
    windows: tuple[int, ...] = Field((2,), description="tried for the best single chain")


@dataclass(frozen=True)
class Setting:
    """One way of serving a cell."""

    overlap: Overlap
    draft_length: int
    rtt_s: float
    overhead_s: float = 0.0
    rule: RuleCode = RuleCode.ID_PROB
    sends_rows: bool = False
    hit_rate: float = 1.0
    branch_share: float = 0.0


@dataclass(frozen=True)
class Speed:
    """What a setting gave."""

    tokens_per_s: float
    alpha: float


@dataclass(frozen=True)
class _Constant:
    """The same plan in every slot, for one device."""

    plan_of_slot: SlotPlan

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Return it."""
        return self.plan_of_slot


def measure(
    config: PicoSpecConfig, cell: Cell, setting: Setting, *, seed: int = 0, tokens: int = 0
) -> Speed:
    """Play sessions of one cell, one after the other.

    Args:
        config: scatter, link and sizes.
        cell: times and acceptance.
        setting: form, draft length, round trip.
        seed: of tokens and scatter.
        tokens: to be committed in all; the config's number by default.

    Returns:
        speed at the cell's acceptance: a sample realises another one, and the ratio of the bounds
        at both takes the difference out (a ratio estimator).
    """
    count = max(1, (tokens or config.tokens) // config.session_tokens)
    path_s = min(config.path_mean_s, setting.rtt_s / 4)
    row_bits = 16.0 * cell.vocab_size if setting.sends_rows else 0.0
    settings = KernelSettings(
        slot_s=1.0,
        contract=Contract(setting.rule, Sampling(), 2, 1),
        session_seed=lambda sid: derive_seed("picospec", seed, cell.name, sid),
        mode="async",
        overlap=setting.overlap,
        jitter=Jitter(config.draft_sd, config.forward_sd, path_s, seed),
        watchdog_s=30.0,
        priced_row_bits=row_bits,
        records="none",
    )
    forward = ForwardTime(1 / cell.ar_tokens_per_s + setting.overhead_s, 0.0, 0.0, 0.0)
    plan = SlotPlan(
        server=np.zeros(1, np.int64),
        draft_length=np.array([setting.draft_length]),
        uplink_bps=np.array([config.link_bps]),
        downlink_bps=np.array([config.link_bps]),
    )
    kernel = VirtualKernel(
        *bernoulli_pair(
            cell.alpha, guesses=max(1, setting.overlap.guesses), hit_rate=setting.hit_rate
        ),
        [DeviceProfile(get_phone(cell.device).draft_time_s, branch_share=setting.branch_share)],
        [ServerProfile(forward, 10**9, setting.rtt_s - 2 * path_s)],
        [Request(sid, 0, 0.0, (0, 1), 2, config.session_tokens) for sid in range(count)],
        _Constant(plan),
        settings,
    )
    records = kernel.run().requests.values()
    accepted, tested = (sum(getattr(r, name) for r in records) for name in ("accepted", "tested"))
    time_s = sum(r.end_s - r.first_token_s for r in records)
    speed, alpha = count * (config.session_tokens - 1) / time_s, accepted / max(tested, 1)
    sampled, wanted = (
        chain_bound(cell, setting.rtt_s, share, at_server=True) for share in (alpha, cell.alpha)
    )
    return Speed(speed * wanted / sampled, alpha)


def chain_bound(cell: Cell, rtt_s: float, alpha: float, *, at_server: bool) -> float:
    """Bound the tokens per second of one chain, by the earliest that each token can be judged.

    After a rejection the next token waits for path and forward less the draft step that overlaps;
    a correction drawn at the server is read while it travels, if the next token passes too.

    Args:
        cell: times.
        rtt_s: round trip.
        alpha: accepted over tested tokens.
        at_server: whether corrections are drawn there.
    """
    draft_s, forward_s = get_phone(cell.device).draft_time_s, 1 / cell.ar_tokens_per_s
    late_s = rtt_s + forward_s - draft_s
    if at_server:
        late_s = alpha * late_s + (1 - alpha) * max(rtt_s, forward_s - draft_s)
    return 1 / (draft_s + (1 - alpha) * late_s)


@dataclass(frozen=True)
class Fit:
    """Round trip of all cells, and overhead per forward of each pair, seconds."""

    rtt_s: float
    overhead_s: dict[str, float]


def fit(config: PicoSpecConfig) -> Fit:
    """Fit the paper's protocol to the fitted cells: the largest round trip that needs no gain.

    Raises:
        UserError: if even the smallest round trip of the grid is too slow for a cell.
    """
    cells = [cell for cell in config.cells if cell.is_fitted]
    for rtt_s in config.rtt_grid_s:
        overhead_s: dict[str, float] = {}
        for cell in cells:
            found = _overhead_s(config, cell, rtt_s)
            if found is None:
                break
            overhead_s[cell.pair] = found
        else:
            return Fit(rtt_s, overhead_s)
    raise UserError(
        f"rtt_grid_s ends at {min(config.rtt_grid_s)}, where a fitted cell is still slower than "
        "published; add a smaller round trip"
    )


def _overhead_s(config: PicoSpecConfig, cell: Cell, rtt_s: float) -> float | None:
    """Find the overhead per forward that gives the published speed; None if it were negative."""

    def speed(overhead_s: float) -> float:
        setting = Setting(Overlap(1), cell.draft_length, rtt_s, overhead_s)
        return measure(config, cell, setting).tokens_per_s

    low_s, high_s = 0.0, 0.03
    if speed(low_s) < cell.published:
        return None
    for _ in range(FIT_STEPS):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (
            (middle_s, high_s) if speed(middle_s) > cell.published else (low_s, middle_s)
        )
    return (low_s + high_s) / 2


def best_chain(config: PicoSpecConfig, cell: Cell, rtt_s: float) -> Setting:
    """Choose window, draft length and first length of one chain on seeds of their own."""
    found: list[tuple[float, Setting]] = []

    def consider(setting: Setting) -> None:
        speed = measure(config, cell, setting, seed=TUNING_SEED, tokens=config.tokens // 3)
        found.append((speed.tokens_per_s, setting))

    def best() -> Setting:
        return max(found, key=lambda pair: pair[0])[1]

    for window in config.windows:
        for length in range(2, config.max_draft_length + 1):
            consider(Setting(Overlap(window), length, rtt_s, rule=RuleCode.TOPK))
    chosen = best()
    for first in range(1, chosen.draft_length + 2):
        consider(replace(chosen, overlap=replace(chosen.overlap, first_length=first)))
    return best()


@dataclass(frozen=True)
class CellRow:
    """One cell: tokens per second, published and ours; `bound` is that of one chain."""

    name: str
    ar: float
    published: float
    paper_protocol: float
    fitted_protocol: float
    truncated: float
    best: float
    best_form: str
    bound: float
    target: float
    without_parallel: float
    without_fast: float
    without_split: float


def run_cell(config: PicoSpecConfig, cell: Cell, fitted: Fit) -> CellRow:
    """Measure one cell: protocol, ablations, and the best single chain within its bound."""
    nominal_s = config.rtt_grid_s[0]
    paper = Setting(Overlap(1), cell.draft_length, nominal_s)

    def speed(setting: Setting) -> float:
        return measure(config, cell, setting).tokens_per_s

    def slow(window: int) -> Overlap:
        return Overlap(window, sends_first_ahead=False, judges_first=False)

    ours = best_chain(config, cell, nominal_s)
    best = measure(config, cell, ours)
    bound = chain_bound(cell, nominal_s, cell.alpha, at_server=True)
    assert best.tokens_per_s <= bound, f"{cell.name}: one chain is faster than its bound"
    overlap = ours.overlap
    return CellRow(
        name=cell.name,
        ar=cell.ar_tokens_per_s,
        published=cell.published,
        paper_protocol=speed(paper),
        fitted_protocol=speed(
            replace(paper, rtt_s=fitted.rtt_s, overhead_s=fitted.overhead_s[cell.pair])
        ),
        truncated=speed(replace(paper, overlap=Overlap(1, draft_budget="verdict"))),
        best=best.tokens_per_s,
        best_form=f"F={overlap.window} n={ours.draft_length} n0={overlap.first_length or '-'}",
        bound=bound,
        target=cell.target,
        # Without a next block on its way there is no first token to judge early.
        without_parallel=speed(replace(paper, overlap=slow(0))),
        without_fast=speed(replace(paper, overlap=slow(1))),
        without_split=speed(replace(paper, rule=RuleCode.TOPK, sends_rows=True)),
    )


def load(path: Path) -> PicoSpecConfig:
    """Read a config.

    Raises:
        UserError: if the file is missing or an entry is not allowed.
    """
    return load_as(PicoSpecConfig, path)


def cell_table(rows: list[CellRow], fitted: Fit) -> Table:
    """Lay the cells out, speeds over plain decoding."""
    overheads = ", ".join(f"{pair} {1e3 * s:.1f} ms" for pair, s in fitted.overhead_s.items())
    table = Table(
        title=f"speed over plain decoding; fitted: RTT {1e3 * fitted.rtt_s:.1f} ms, {overheads}"
    )
    for head in ("cell", "published", "same", "cut", "fitted", "best", "form", "bound", "target"):
        table.add_column(head)
    for row in rows:
        figures = (
            row.published,
            row.paper_protocol,
            row.truncated,
            row.fitted_protocol,
            row.best,
        )
        ratios = [f"{figure / row.ar:.2f}" for figure in figures]
        error = row.fitted_protocol / row.published - 1
        ratios[3] += f" ({100 * error:+.1f} %)"
        bound = f"{row.bound / row.ar:.2f}"
        table.add_row(row.name, *ratios, row.best_form, bound, f"{row.target:.2f}")
    return table


def ablation_table(rows: list[CellRow], cells: tuple[Cell, ...]) -> Table:
    """Lay the ablations out, tokens per second: ours / published."""
    table = Table(title="tokens per second without one part: ours / published")
    for head in ("cell", "parallel drafting", "fast verification", "separate rejection"):
        table.add_column(head)
    for row, cell in zip(rows, cells, strict=True):
        names = ("without_parallel", "without_fast", "without_split")
        pairs = [f"{getattr(row, n):.2f} / {getattr(cell, n):.2f}" for n in names]
        table.add_row(row.name, *pairs)
    return table


def main(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="cells and timing")] = CONFIG,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures")] = None,
    tokens: Annotated[int, typer.Option(min=0, help="per figure; 0: the config's number")] = 0,
    branches: Annotated[bool, typer.Option(help="branches behind guessed corrections too")] = True,
    sweeps: Annotated[bool, typer.Option(help="sweep round trip, bandwidth, length too")] = True,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="write the sweep")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the sweep (PNG)")] = None,
) -> None:
    """Reproduce the paper's four cells and its ablations, add branches, and sweep."""
    from experiments import picospec_branches, picospec_sweep

    console = Console()
    try:
        config = load(path)
        if tokens:
            config = config.model_copy(update={"tokens": tokens})
        fitted = fit(config)
        rows = [
            run_cell(config, cell, fitted)
            for cell in track(config.cells, description="cells", transient=True)
        ]
        console.print(cell_table(rows, fitted))
        console.print(ablation_table(rows, config.cells))
        branched = picospec_branches.run_branches(config) if branches else []
    except UserError as error:
        console.print(f"error: {error}")
        raise typer.Exit(2) from error
    if branches:
        console.print(picospec_branches.branch_table(branched))
    points = picospec_sweep.sweep(config) if sweeps else []
    for table in picospec_sweep.sweep_tables(points):
        console.print(table)
    if csv_file is not None:
        picospec_sweep.write_csv(points, csv_file)
    if figure is not None and points:
        picospec_sweep.draw(points, figure)
    if json_file is not None:
        found = {
            "fit": asdict(fitted),
            "cells": [asdict(row) for row in rows],
            "branches": [asdict(row) for row in branched],
            "sweep": [asdict(point) for point in points],
        }
        with whole_file(json_file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
