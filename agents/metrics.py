"""Writes the metrics of a training: TensorBoard events and metrics.csv, one row per iteration."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from uara.files import whole_file

STEP = "env_steps"


class MetricsWriter:
    """Appends rows keyed by the number of network slots played so far.

    A key that appears late (validation comes every few iterations) gets a column of its own, empty
    in the rows before.
    """

    def __init__(self, run_dir: Path, start_step: int = 0) -> None:
        """Open the run folder; rows after `start_step`, of a training that was cut, are dropped."""
        # Loading TensorBoard takes a second that commands without training should not pay.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = run_dir / "metrics.csv"
        self.rows = [row for row in _read_rows(self.path) if int(float(row[STEP])) <= start_step]
        self.columns = [STEP]
        for row in self.rows:
            self._add_columns(row)
        self._events = SummaryWriter(
            str(run_dir), purge_step=start_step + 1 if start_step else None
        )
        self._rewrite()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row."""
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)
        row = {STEP: str(step)} | {key: repr(float(value)) for key, value in metrics.items()}
        self.rows.append(row)
        if self._add_columns(row):
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def close(self) -> None:
        """Flush the events."""
        self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add_columns(self, row: Mapping[str, str]) -> bool:
        """Take up the keys that have no column yet and tell whether there were any."""
        fresh = [key for key in row if key not in self.columns]
        self.columns += fresh
        return bool(fresh)

    def _rewrite(self) -> None:
        """Write all rows anew."""
        with (
            whole_file(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows that are there, without empty cells."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
