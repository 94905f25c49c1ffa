"""Markdown of the results tables: the README shows what the CSVs under docs/results/ say."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from uara.errors import UserError

HEADER = (
    "| controller | observes | E2E (s) | minus greedy (s) | TTFT (s) | TPOT (ms) | J/request |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
)
PART_HEADER = (
    "| part | rule | E2E (s) | minus start (s) | per cent | TTFT (s) | TPOT (ms) | J/request |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)
BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def markdown_table(path: Path) -> str:
    """Turn a results CSV into a Markdown table, rows in the order of the file.

    A file with a column `part` is of rules changed one at a time; others are of controllers.

    Raises:
        UserError: if the file is missing or lacks a column of the table.
    """
    if not path.is_file():
        raise UserError(f"results {path} do not exist; make them with `uara results`")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    is_by_part = bool(rows) and "part" in rows[0]
    try:
        lines = [(_part_line if is_by_part else _line)(row) for row in rows]
    except KeyError as error:
        raise UserError(
            f"results {path} lack the column {error}; make them again with `uara results`"
        ) from error
    return "\n".join((*(PART_HEADER if is_by_part else HEADER), *lines)) + "\n"


def fill_tables(text: str, folder: Path) -> str:
    """Put the tables of a folder of CSVs between the markers of a Markdown text.

    A table NAME stands between `<!-- results:NAME -->` and `<!-- /results -->`.

    Raises:
        UserError: if the CSV of a marker is missing or lacks a column.
    """
    return BLOCK.sub(
        lambda block: block[1] + markdown_table(folder / f"{block[2]}.csv") + block[3], text
    )


def _line(row: Mapping[str, str]) -> str:
    cells = (
        row["controller"],
        row["observes"],
        _interval(row, "e2e_latency_s"),
        _interval(row, "e2e_minus_reference_s", sign="+"),
        f"{float(row['ttft_s']):.2f}",
        f"{1e3 * float(row['tpot_s']):.0f}",
        f"{float(row['device_energy_j']):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _part_line(row: Mapping[str, str]) -> str:
    mean, paired = float(row["e2e_latency_s"]), float(row["e2e_minus_reference_s"])
    cells = (
        row["part"],
        row["rule"],
        f"{mean:.2f}",
        _interval(row, "e2e_minus_reference_s", sign="+"),
        f"{100 * paired / (mean - paired):+.1f}",
        f"{float(row['ttft_s']):.2f}",
        f"{1e3 * float(row['tpot_s']):.0f}",
        f"{float(row['device_energy_j']):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _interval(row: Mapping[str, str], name: str, sign: str = "") -> str:
    """Show a mean with its 95 % interval; an interval without bounds is left out."""
    mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if not mean:
        return "-"
    shown = f"{float(mean):{sign}.2f}"
    return f"{shown} [{float(low):{sign}.2f}, {float(high):{sign}.2f}]" if low and high else shown
