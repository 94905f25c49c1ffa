"""Prints how often the intervals of the tables cover the truth, by simulation.

Shape legend: W worlds, S training seeds, C simulated tables.

Each case draws tables of world and seed means from a law whose true figure is known and counts how
often the 95 % interval holds it. `python -m benchmarks.coverage [--tables C] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import integrate, stats

from experiments.robust_statistics import interquartile_mean, probability_of_improvement
from experiments.statistics import Interval, mean_interval

SKEW = 0.6  # of the log-normal law that stands for latencies
SHIFT = 0.5  # mean of a paired difference of unit spread


@dataclass(frozen=True)
class Coverage:
    """Share of intervals that hold the truth."""

    figure: str
    law: str
    worlds: int
    seeds: int
    covered: float
    standard_error: float


@dataclass(frozen=True)
class Case:
    """A figure, the law of its cells, and its true value."""

    figure: str
    law: str
    truth: float
    draw: Callable[[np.random.Generator, int], NDArray[np.float64]]
    interval: Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], Interval]


def log_normal_iqm() -> float:
    """Integrate the mean of the middle half of the log-normal law."""
    law = stats.lognorm(SKEW)
    low, high = law.ppf([0.25, 0.75])
    return float(integrate.quad(lambda x: x * law.pdf(x), low, high)[0] / 0.5)


def cases() -> list[Case]:
    """List the figures with laws whose truth is known."""

    def normal(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return rng.normal(size=count)

    def skewed(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return rng.lognormal(0, SKEW, count)

    def shifted(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return rng.normal(SHIFT, 1, count)

    def improvement(
        values: NDArray[np.float64], world: NDArray[np.int64], seed: NDArray[np.int64]
    ) -> Interval:
        return probability_of_improvement(-values, np.zeros_like(values), world, seed)

    return [
        Case("mean, t", "normal", 0.0, normal, mean_interval),
        Case("mean, t", "log-normal", float(np.exp(SKEW**2 / 2)), skewed, mean_interval),
        Case("interquartile mean", "normal", 0.0, normal, interquartile_mean),
        Case("interquartile mean", "log-normal", log_normal_iqm(), skewed, interquartile_mean),
        Case("probability of improvement", "normal", stats.norm.cdf(SHIFT), shifted, improvement),
    ]


def measure(case: Case, worlds: int, tables: int, seed: int = 0) -> Coverage:
    """Count how often the interval of a case over W independent worlds holds its truth.

    Args:
        case: figure and law.
        worlds: W.
        tables: C.
        seed: of the simulation.
    """
    rng = np.random.default_rng([seed, worlds])
    labels = np.arange(worlds)
    hits = 0
    for _ in range(tables):
        found = case.interval(case.draw(rng, worlds), labels, np.zeros(worlds, np.int64))
        hits += found.low <= case.truth <= found.high
    return _row(case.figure, case.law, (worlds, 1), hits / tables, tables)


def measure_crossed(worlds: int, seeds: int, tables: int) -> list[Coverage]:
    """Count coverage where worlds and training seeds both scatter, each with unit spread."""
    rng = np.random.default_rng([1, worlds, seeds])
    world, seed = np.tile(np.arange(worlds), seeds), np.repeat(np.arange(seeds), worlds)
    hits = {"mean, t": 0, "interquartile mean": 0}
    for _ in range(tables):
        values = rng.normal(size=worlds)[world] + rng.normal(size=seeds)[seed]
        values += rng.normal(0, 0.5, len(world))
        for name, interval in (
            ("mean, t", mean_interval(values, world, seed)),
            ("interquartile mean", interquartile_mean(values, world, seed, resamples=1000)),
        ):
            hits[name] += interval.low <= 0.0 <= interval.high
    return [
        _row(name, "normal, worlds and seeds", (worlds, seeds), count / tables, tables)
        for name, count in hits.items()
    ]


def _row(figure: str, law: str, size: tuple[int, int], covered: float, tables: int) -> Coverage:
    error = float(np.sqrt(covered * (1 - covered) / tables))
    return Coverage(figure, law, *size, covered, error)


def main() -> None:
    """Measure and print every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables per row")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows: list[Coverage] = []
    plan = [(case, worlds) for case in cases() for worlds in (10, 24, 50)]
    for case, worlds in track(plan, "independent worlds"):
        rows.append(measure(case, worlds, arguments.tables))
    for worlds, seeds in track([(24, 5), (24, 10), (50, 10)], "worlds and seeds"):
        rows += measure_crossed(worlds, seeds, arguments.tables)
    table = Table("figure", "law", "worlds", "seeds", "covered (95 % asked)")
    for row in rows:
        share = f"{100 * row.covered:.1f} % ± {100 * row.standard_error:.1f}"
        table.add_row(row.figure, row.law, str(row.worlds), str(row.seeds), share)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
