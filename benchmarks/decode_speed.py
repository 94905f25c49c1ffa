"""Rounds per second of the runtime itself: a table for a language model, one core, virtual time."""

from __future__ import annotations

import cProfile
import pstats
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.records import Records
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.decoding.table_model import TableModel
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime

VOCAB = 32
DRAFT_LENGTH = 4
ANSWER_TOKENS = 64
REPEATS = 3
PROFILE_ROWS = 20
MODES = ("sd", "psd", "async")
LEVELS: tuple[Records, ...] = ("all", "none")


@dataclass(frozen=True)
class _Constant:
    plan_of_slot: SlotPlan

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        return self.plan_of_slot


def tables() -> tuple[TableModel, TableModel]:
    """Draw a draft and a target that resembles it."""
    generator = np.random.default_rng(0)
    draft = generator.normal(0, 1, (VOCAB,) * 3)
    return TableModel(draft), TableModel(draft + generator.normal(0, 0.5, draft.shape))


def make_kernel(
    mode: str, pair: tuple[TableModel, TableModel], *, records: Records, requests: int = 40
) -> VirtualKernel:
    """Give one device requests, one after the other."""
    settings = KernelSettings(
        slot_s=10.0,
        contract=Contract(RuleCode.ID_PROB, Sampling(), 8, 8),
        session_seed=lambda sid: derive_seed("speed", sid),
        mode=mode,
        window=2,
        records=records,
        checks_draws=False,
    )
    rate = np.array([1e8])
    plan = SlotPlan(np.zeros(1, np.int64), np.array([DRAFT_LENGTH]), rate, rate)
    return VirtualKernel(
        *pair,
        [DeviceProfile(0.02)],
        [ServerProfile(ForwardTime(0.07, 0.0, 0.0, 0.0), 10**6, 0.05)],
        [Request(sid, 0, 0.0, (1, 2), 2, ANSWER_TOKENS) for sid in range(requests)],
        _Constant(plan),
        settings,
    )


def rounds_per_s(kernel: VirtualKernel) -> tuple[float, float]:
    """Play a run; return rounds and tokens per second of processor time."""
    begun = time.process_time()
    records = kernel.run().requests.values()
    spent_s = time.process_time() - begun
    rounds = sum(record.verifications for record in records)
    return rounds / spent_s, sum(len(record.tokens) for record in records) / spent_s


def profile(kernel: VirtualKernel) -> Table:
    """Play a run under the profiler; lay out the functions that take most time of their own."""
    profiler = cProfile.Profile()
    profiler.enable()
    recorder = kernel.run()
    profiler.disable()
    rounds = sum(record.verifications for record in recorder.requests.values())
    found = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        (own_s, calls, whole_s, f"{Path(file).name}:{line} {name}" if line else name)
        for (file, line, name), (_, calls, own_s, whole_s, _) in found.items()
    ]
    total_s = sum(row[0] for row in rows)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("function")
    for name in ("own %", "with callees %", "calls per round"):
        table.add_column(name, justify="right")
    for own_s, calls, whole_s, name in sorted(rows, reverse=True)[:PROFILE_ROWS]:
        shares = (f"{100 * own_s / total_s:.1f}", f"{100 * whole_s / total_s:.1f}")
        table.add_row(escape(name), *shares, f"{calls / rounds:.1f}")
    table.add_section()
    table.add_row("all", "100", "", f"{sum(row[1] for row in rows) / rounds:.0f}")
    return table


def loop_ns() -> float:
    """Time a step of an empty loop, to tell machines and their states apart, ns."""
    begun = time.process_time()
    for _ in range(10**6):
        pass
    return (time.process_time() - begun) * 1e3


def main(
    profiled: Annotated[
        bool, typer.Option("--profile", help="show where the time goes as well")
    ] = False,
) -> None:
    """Print the best of a few runs per mode, with all records and without."""
    torch.set_num_threads(1)
    console, pair = Console(), tables()
    console.print(f"table model, V = {VOCAB}, draft length {DRAFT_LENGTH}, processor time")
    for mode in MODES:
        for records in LEVELS:
            # The first run makes the rows of the tables, which is not the runtime's work.
            runs = [
                rounds_per_s(make_kernel(mode, pair, records=records)) for _ in range(1 + REPEATS)
            ]
            rounds, tokens = max(runs[1:])
            console.print(
                f"{mode:6} records {records:5}: {rounds:6.0f} rounds/s, {tokens:6.0f} tokens/s; "
                f"an empty loop's step takes {loop_ns():.0f} ns"
            )
    for mode in MODES if profiled else ():
        console.print(f"{mode}, all records")
        console.print(profile(make_kernel(mode, pair, records="all")))


if __name__ == "__main__":
    typer.run(main)
