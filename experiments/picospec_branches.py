"""PicoSpec's cells with branches behind guessed corrections, at assumed and at measured figures.

What branches bring rests on two numbers: how often the token after a rejection is guessed, and what
one more branch adds to a draft step. They stand beside every speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.progress import track
from rich.table import Table

from experiments.picospec import (
    TUNING_SEED,
    Cell,
    PicoSpecConfig,
    Setting,
    chain_bound,
    measure,
)
from uara.decoding.models import SHIPPED_PAIR_FOLDER
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import RuleCode
from uara.errors import UserError

MEASURED = SHIPPED_PAIR_FOLDER / "branches.json"
PHONE = "snapdragon-8-gen-3"
RULE, TASK = "maxc", "all"
STREAM_WINDOW = 12


class _Rates(msgspec.Struct):
    by_guesses: list[float]


class _Machine(msgspec.Struct):
    share: float


class _Measured(msgspec.Struct):
    """What `uara pair branches` writes, as far as it is read."""

    guesses: list[int]
    hit_rates: dict[str, dict[str, _Rates]]
    this_machine: _Machine
    phones: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Premise:
    """What is taken for granted: hit rates by number of guesses, and the share of a branch."""

    name: str
    hit_rates: dict[int, float]
    branch_share: float


def premises(path: Path = MEASURED) -> list[Premise]:
    """List what the branches are judged by: an assumption, and two measurements of the pair.

    Raises:
        UserError: if the file of `uara pair branches` is missing or of another form.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Measured)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(
            f"'{path}' is not what `uara pair branches --json FILE` writes ({error}); run it"
        ) from error
    rates = found.hit_rates[RULE][TASK].by_guesses
    measured = {m: h for m, h in zip(found.guesses, rates, strict=True) if m in (1, 3)}
    return [
        Premise("assumed", {3: 0.65}, 0.01),
        Premise("pair, phone's roofline", measured, found.phones[PHONE]["shared_prefix"]),
        Premise("pair, this machine", measured, found.this_machine.share),
    ]


def forms(cell: Cell, premise: Premise, rtt_s: float) -> list[Setting]:
    """List the ways of branching that are tried.

    Blocks as long as the paper's, or every token a block of its own, each with the token after a
    rejection drawn at the device; and the second with that drawn at the server.
    """
    length = cell.draft_length
    shapes = [
        (Overlap(1), length, length, RuleCode.ID_PROB),
        (Overlap(2), max(3, length - 1), 3, RuleCode.ID_PROB),
        (Overlap(STREAM_WINDOW, sends_first_ahead=False), 1, 8, RuleCode.ID_PROB),
        (Overlap(STREAM_WINDOW, sends_first_ahead=False), 1, 6, RuleCode.TOPK),
    ]
    return [
        Setting(
            Overlap(
                overlap.window,
                sends_first_ahead=overlap.sends_first_ahead,
                guesses=guesses,
                branch_length=depth,
            ),
            own,
            rtt_s,
            rule=rule,
            hit_rate=hit_rate,
            branch_share=premise.branch_share,
        )
        for overlap, own, depth, rule in shapes
        for guesses, hit_rate in premise.hit_rates.items()
    ]


def best_form(config: PicoSpecConfig, cell: Cell, tried: Sequence[Setting]) -> Setting:
    """Choose the fastest, on seeds of its own."""

    def speed(setting: Setting) -> float:
        tokens = config.tokens // 4
        return measure(config, cell, setting, seed=TUNING_SEED, tokens=tokens).tokens_per_s

    return max(tried, key=speed)


@dataclass(frozen=True)
class BranchRow:
    """One cell under one premise; speed over plain decoding of the target."""

    cell: str
    premise: str
    guesses: int
    hit_rate: float
    branch_share: float
    form: str
    ratio: float
    bound_without: float
    target: float
    stretch: float


def run_branches(
    config: PicoSpecConfig, path: Path = MEASURED, cells: Sequence[Cell] = ()
) -> list[BranchRow]:
    """Choose a form per cell and premise on seeds of its own, and measure it."""
    rtt_s, rows = config.rtt_grid_s[0], []
    pairs = [(c, premise) for c in cells or config.cells for premise in premises(path)]
    for cell, premise in track(pairs, description="branches", transient=True):
        tuned = best_form(config, cell, forms(cell, premise, rtt_s))
        speed = measure(config, cell, tuned).tokens_per_s
        overlap, ar = tuned.overlap, cell.ar_tokens_per_s
        rows.append(
            BranchRow(
                cell=cell.name,
                premise=premise.name,
                guesses=overlap.guesses,
                hit_rate=tuned.hit_rate,
                branch_share=premise.branch_share,
                form=f"F={overlap.window} n={tuned.draft_length} d={overlap.branch_length} "
                f"{tuned.rule.name.lower()}",
                ratio=speed / ar,
                bound_without=chain_bound(cell, rtt_s, cell.alpha, at_server=True) / ar,
                target=cell.branch_target,
                stretch=cell.branch_stretch,
            )
        )
    return rows


def branch_table(rows: Sequence[BranchRow]) -> Table:
    """Lay the cells out, hit rate and cost beside each speed."""
    table = Table(title="speed over plain decoding with branches")
    for head in ("cell", "figures", "m", "hit rate", "share", "form", "speed", "one chain's bound",
                 "target", "stretch"):  # fmt: skip
        table.add_column(head)
    for row in rows:
        table.add_row(
            row.cell,
            row.premise,
            str(row.guesses),
            f"{row.hit_rate:.3f}",
            f"{row.branch_share:.3f}",
            row.form,
            f"{row.ratio:.2f}",
            f"{row.bound_without:.2f}",
            f"{row.target:.2f}",
            f"{row.stretch:.2f}",
        )
    return table
