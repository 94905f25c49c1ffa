"""Compares channel banks: quantiles of their single-slot gains, and how different they are.

    python -m benchmarks.channel_marginals banks/A.npz banks/B.npz

Shape legend: W worlds, T slots, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from uara.errors import UserError
from uara.radio.bank import ChannelBank

PERCENT = (1, 5, 25, 50, 75, 95, 99)
_RESAMPLES = 400

Array = NDArray[np.float64]

LINKS: dict[str, Callable[[Array], Array]] = {
    "all links (dB)": lambda gain_db: gain_db,
    "strongest (dB)": lambda gain_db: gain_db.max(axis=-1),
}


def difference_interval(first_db: Array, second_db: Array) -> tuple[Array, Array]:
    """Resample worlds of both banks together: 95 % interval of quantile differences.

    Args:
        first_db: (W, ...) gains.
        second_db: likewise, of the same worlds.

    Returns:
        lower and upper ends, one for each of `PERCENT`.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(first_db), size=(_RESAMPLES, len(first_db)))
    spread = [
        np.percentile(second_db[worlds], PERCENT) - np.percentile(first_db[worlds], PERCENT)
        for worlds in drawn
    ]
    low, high = np.percentile(spread, (2.5, 97.5), axis=0)
    return low, high


def compare(first: ChannelBank, second: ChannelBank) -> Table:
    """Tabulate quantiles of all links and of each device's strongest link.

    Raises:
        UserError: the banks have different numbers of worlds.
    """
    if len(first.gain_db) != len(second.gain_db):
        raise UserError(
            f"the banks have {len(first.gain_db)} and {len(second.gain_db)} worlds: "
            "give two banks of the same worlds"
        )
    names = [f"{bank.config.backend} {bank.sionna_version}" for bank in (first, second)]
    table = Table("quantile", *(f"{what}: {c}" for what in LINKS for c in (*names, "difference")))
    columns: list[list[str]] = []
    for choose in LINKS.values():
        gains = [choose(bank.gain_db.astype(np.float64)) for bank in (first, second)]
        columns += [[f"{q:.1f}" for q in np.percentile(gain, PERCENT)] for gain in gains]
        ends = zip(*difference_interval(*gains), strict=True)
        columns.append([f"[{low:+.1f}, {high:+.1f}]" for low, high in ends])
    for percent, *row in zip(PERCENT, *columns, strict=True):
        table.add_row(f"{percent} %", *row)
    for name, bank in zip(names, (first, second), strict=True):
        step_db = np.abs(np.diff(bank.gain_db.astype(np.float64), axis=1)).mean()
        los = f"line of sight on {bank.is_los.mean():.1%} of links"
        table.caption = f"{table.caption or ''}{name}: {los}, mean step {step_db:.2f} dB. "
    return table


def main(
    first: Annotated[Path, typer.Argument(help="bank file")],
    second: Annotated[Path, typer.Argument(help="bank file of the same worlds")],
) -> None:
    """Print the quantiles of two banks."""
    Console(width=140).print(compare(ChannelBank.load(first), ChannelBank.load(second)))


if __name__ == "__main__":
    typer.run(main)
