"""Traces of a pair as a file, and what its models are worth, as tables."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from experiments.pair.traces import MAX_DRAFT_LENGTH, measure_traces, summary, trace_file
from experiments.runs import write_json
from uara.decoding.models import SHIPPED_PAIR_FOLDER, ModelPair, load_prompts


def trace_prompts(
    pair: ModelPair, prompts: Path | None, temperature: float, path: Path
) -> list[Table]:
    """Measure traces on a decode set, write them, and compare the models of acceptance.

    Args:
        pair: draft and target.
        prompts: decode set; None: the shipped one.
        temperature: of both.
        path: of the trace file, which also holds the summary.
    """
    chosen = load_prompts(prompts or SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    traces = measure_traces(pair, chosen, temperature)
    told = summary(traces)
    write_json(path, trace_file(pair.name, traces, temperature) | {"summary": told})
    lengths = range(1, MAX_DRAFT_LENGTH + 1)
    rates = Table(title="acceptance along texts of the target")
    for name in (
        "task",
        "prompts",
        "acceptance [95 %]",
        "lag-1",
        "tau at gamma 1, 2, ...",
        "hazard",
    ):
        rates.add_column(name)
    errors = Table(title="error of tau on held-out prompts (%), gamma 1, 2, ...")
    for name in ("task", "model", *map(str, lengths)):
        errors.add_column(name)
    for task, row in told.items():
        low, high = row["acceptance_95"]
        rates.add_row(
            task,
            f"{row['prompts']}",
            f"{row['acceptance']:.3f} [{low:.3f}, {high:.3f}]",
            f"{row['lag_one']:.2f}",
            " ".join(f"{tau:.2f}" for tau in row["tau"]),
            " ".join(f"{rate:.2f}" for rate in row["hazard"]),
        )
        for model, values in row["held_out_tau_error"].items():
            errors.add_row(task, model, *(f"{100 * value:+.1f}" for value in values))
    return [rates, errors]
