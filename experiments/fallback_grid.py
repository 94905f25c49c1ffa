"""Is speculation with the fall-back ever slower than the server alone? A grid of settings.

`python -m experiments.fallback_grid` plays requests of the runtime's own machines for every round
trip, acceptance and forward time, with times that scatter, and prints the speed over the server
alone. Finished settings are kept in a file, from which an interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.fallback import Fallback, FallbackConfig
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.nodes import Jitter
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.decoding.verifier import Contract
from uara.errors import UserError
from uara.files import whole_file
from uara.serving.hardware import ForwardTime

RTT_S = (0.005, 0.01, 0.02, 0.05, 0.075, 0.1, 0.15, 0.2)
ALPHA = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))
FORWARD_S = (0.072, 0.1456)  # of arXiv 2603.19133's two targets
DRAFT_S = 0.0244
RATE_BPS = 100e6
PATH_MEAN_S = 3e-3
JUMP_S, JUMPED_RTT_S = 3.0, (0.2, 0.02)  # a round trip below 100 ms jumps to the first


class Cell(msgspec.Struct, frozen=True):
    """One setting, and how its requests are played."""

    rtt_s: float
    alpha: float
    forward_s: float
    requests: int = 60
    tokens: int = 128
    confidence: float = FallbackConfig().confidence
    jumps: bool = False


class CellResult(msgspec.Struct, frozen=True):
    """Speeds over the server alone, one per request, and tokens that were tested."""

    cell: Cell
    ratios: list[float]
    tested: int

    @property
    def mean(self) -> float:
        """Mean over requests."""
        return float(np.mean(self.ratios))

    @property
    def p5(self) -> float:
        """5th percentile of requests."""
        return float(np.percentile(self.ratios, 5))


@dataclass
class _Constant:
    """The same plan for all devices, each with a server of its own; the path may jump once."""

    count: int
    jumped_rtt_s: float | None

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Return it, with draft lengths for the fall-back to replace."""
        if self.jumped_rtt_s is not None and now >= JUMP_S:
            for node in kernel.servers:
                node.profile = replace(node.profile, rtt_s=self.jumped_rtt_s)
            self.jumped_rtt_s = None
        rates = np.full(self.count, RATE_BPS)
        return SlotPlan(np.arange(self.count), np.full(self.count, 4), rates, rates)


def measure(cell: Cell, seed: int = 0) -> CellResult:
    """Play the requests of one setting side by side."""
    count, path_s = cell.requests, min(PATH_MEAN_S, cell.rtt_s / 4)
    settings = KernelSettings(
        slot_s=0.25,
        contract=Contract(RuleCode.ID_PROB, Sampling(), 2, 1),
        session_seed=lambda sid: derive_seed("fallback", seed, repr(cell), sid),
        mode="async",
        jitter=Jitter(path_mean_s=path_s, seed=seed),
        watchdog_s=30.0,
        records="none",
        shadows=True,
        checks_draws=False,
    )
    jumped_s = JUMPED_RTT_S[cell.rtt_s >= 0.1] if cell.jumps else None
    server = ServerProfile(ForwardTime(cell.forward_s, 0, 0, 0), 10**6, cell.rtt_s - 2 * path_s)
    kernel = VirtualKernel(
        *bernoulli_pair(cell.alpha),
        [DeviceProfile(DRAFT_S)] * count,
        [server] * count,
        [Request(sid, sid, 0.0, (0, 1), 2, cell.tokens) for sid in range(count)],
        Fallback(_Constant(count, jumped_s), FallbackConfig(confidence=cell.confidence)),
        settings,
    )
    records = kernel.run().requests.values()
    ratios = [round(cell.forward_s / record.tpot_s, 4) for record in records]
    return CellResult(cell, ratios, sum(record.tested for record in records))


def oracle(cell: Cell) -> float:
    """Compute the speed over the server alone of the draft length that the formula prefers."""
    fallback = Fallback(_Constant(1, None), FallbackConfig())
    return max(1.0, float(fallback.gains(cell.alpha, cell.rtt_s, DRAFT_S, cell.forward_s).max()))


def grid(base: Cell, every: int = 1) -> list[Cell]:
    """List the settings, or every so many of them."""
    cells = [
        Cell(*values, base.requests, base.tokens, base.confidence, base.jumps)
        for values in product(RTT_S, ALPHA, FORWARD_S)
    ]
    return cells[::every]


def finished(path: Path) -> dict[Cell, CellResult]:
    """Read what a file has of earlier runs.

    Raises:
        UserError: if it is no such file.
    """
    if not path.is_file():
        return {}
    try:
        lines = path.read_bytes().splitlines()
        found = [msgspec.json.decode(line, type=CellResult) for line in lines]
    except msgspec.DecodeError as error:
        raise UserError(f"'{path}' is no file of results ({error}); give another --file") from error
    return {result.cell: result for result in found}


def write(path: Path, results: Iterable[CellResult]) -> None:
    """Write all results, a line each; the file appears whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(msgspec.json.encode(found) + b"\n" for found in results))


def summary_table(results: Sequence[CellResult]) -> Table:
    """Lay out the worst settings and what they have in common."""
    means = np.array([result.mean for result in results])
    shares = [result.mean / oracle(result.cell) for result in results]
    table = Table(
        title=f"{len(results)} settings: worst mean {means.min():.3f}, worst 5th percentile "
        f"{min(result.p5 for result in results):.3f}, {(means < 0.97).sum()} below 0.97; mean "
        f"share of the formula's best length {np.mean(shares):.3f}"
    )
    for head in ("RTT ms", "alpha", "forward ms", "mean", "p5", "best length", "tested"):
        table.add_column(head, justify="right")
    for index in np.argsort(means)[:12]:
        found = results[index]
        cell = found.cell
        table.add_row(
            f"{1e3 * cell.rtt_s:.0f}",
            f"{cell.alpha:.2f}",
            f"{1e3 * cell.forward_s:.1f}",
            f"{found.mean:.3f}",
            f"{found.p5:.3f}",
            f"{oracle(cell):.3f}",
            str(found.tested),
        )
    return table


def main(
    requests: Annotated[int, typer.Option(min=1, help="per setting")] = 60,
    tokens: Annotated[int, typer.Option(min=2, help="per request")] = 128,
    confidence: Annotated[
        float, typer.Option(min=0, help="standard errors below the mean")
    ] = FallbackConfig().confidence,
    jumps: Annotated[bool, typer.Option(help="round trips jump once, after 3 s")] = False,
    every: Annotated[int, typer.Option(min=1, help="play every so many settings only")] = 1,
    file: Annotated[Path, typer.Option(help="results, kept for a run that goes on")] = Path(
        "runs/fallback.jsonl"
    ),
) -> None:
    """Play the grid and print its worst settings."""
    torch.set_num_threads(1)
    console = Console()
    cells = grid(Cell(0.0, 0.0, 0.0, requests, tokens, confidence, jumps), every)
    try:
        done = finished(file)
    except UserError as error:
        console.print(f"error: {error}")
        raise typer.Exit(2) from error
    for cell in track([c for c in cells if c not in done], console=console, transient=True):
        done[cell] = measure(cell)
        write(file, done.values())
    results = [done[cell] for cell in cells]
    console.print(summary_table(results))
    if any(result.mean < 0.97 for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
