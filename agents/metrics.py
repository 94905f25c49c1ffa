"""Writes the metrics of a training: TensorBoard events and metrics.csv, one row per iteration.

TensorBoard also gets histograms of choices, pictures of the network, hyperparameters.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

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
        self._events = SummaryWriter(str(run_dir), purge_step=start_step + 1)
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

    def write_histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Write the spread of values; empty tensors are left out."""
        for name, tensor in values.items():
            if tensor.numel() > 0:
                self._events.add_histogram(name, tensor.detach().cpu(), step)

    def write_picture(self, step: int, name: str, picture: NDArray[Any]) -> None:
        """Write a picture (height, width, 3), bytes."""
        self._events.add_image(name, picture, step, dataformats="HWC")

    def write_hyperparameters(
        self, options: Mapping[str, object], results: Mapping[str, float]
    ) -> None:
        """Write what was chosen and what came out, for TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in options.items()
        }
        finals = {f"final/{key}": value for key, value in results.items()}
        writer = self._events.file_writer
        assert writer is not None
        for summary in hparams(plain, finals):
            writer.add_summary(summary)
        for key, value in finals.items():
            self._events.add_scalar(key, value)

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
    """Read the rows that are there, without empty cells; one that was cut while written is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]
