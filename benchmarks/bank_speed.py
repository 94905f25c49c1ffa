"""Speed and size of channel banks: `python -m benchmarks.bank_speed`.

One world of each size is built on one thread, saved and loaded. A link is a pair of device and
server over the whole track of one world. Seconds of building are those of the processor, so that
what else runs on the machine counts less.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from uara.radio.bank import BankConfig, ChannelBank
from uara.radio.sionna_bank import build_bank

Fading = Literal["cir", "large_scale"]

SIZES = ((8, 3, 128), (30, 4, 128), (180, 20, 32), (8, 3, 512))  # devices, servers, slots
LARGE = (180, 20, 32)


@dataclass(frozen=True)
class Row:
    """One line of the table, for one world."""

    fading: Fading
    devices: int
    servers: int
    slots: int
    build_s: float
    file_bytes: int
    load_s: float

    @property
    def links(self) -> int:
        """Pairs of device and server."""
        return self.devices * self.servers


def bank_config(size: tuple[int, int, int], fading: Fading) -> BankConfig:
    """Describe a bank of one world."""
    devices, servers, slots = size
    return BankConfig(
        num_devices=devices,
        num_servers=servers,
        num_slots=slots,
        fading=fading,
        train=1,
        tuning=0,
        validation=0,
        evaluation=0,
    )


def measure(size: tuple[int, int, int], fading: Fading, folder: Path) -> Row:
    """Build, save and load one world."""
    start_s = time.process_time()
    bank = build_bank(bank_config(size, fading), workers=1)
    build_s = time.process_time() - start_s
    path = folder / "bank.npz"
    bank.save(path)
    start_s = time.perf_counter()
    ChannelBank.load(path)
    load_s = time.perf_counter() - start_s
    return Row(fading, *size, build_s, path.stat().st_size, load_s)


def show(rows: list[Row], console: Console) -> None:
    """Print the table, and how long 64 worlds of the largest size take on two cores."""
    table = Table(title="One world, one thread", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("fading")
    for column in (
        *("devices", "servers", "slots", "build [s]", "ms/link"),
        *("us/(link slot)", "kB", "load [ms]"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.fading,
            *(str(n) for n in (row.devices, row.servers, row.slots)),
            f"{row.build_s:.2f}",
            f"{1e3 * row.build_s / row.links:.2f}",
            f"{1e6 * row.build_s / (row.links * row.slots):.1f}",
            f"{row.file_bytes / 1e3:,.0f}",
            f"{1e3 * row.load_s:.1f}",
        )
    console.print(table)
    for row in rows:
        if (row.devices, row.servers, row.slots) == LARGE:
            minutes = 64 * row.build_s / 2 / 60
            console.print(
                f"{row.fading}: 64 worlds of {row.devices} x {row.servers} x {row.slots} "
                f"take {minutes:.1f} minutes with two workers"
            )


def main(
    large: Annotated[bool, typer.Option(help="time rays at the largest size too")] = True,
) -> None:
    """Time banks of several sizes with both ways of fading."""
    # The first topology of a process loads and compiles what the others reuse.
    build_bank(bank_config((2, 1, 4), "cir"), workers=1)
    build_bank(bank_config((2, 1, 4), "large_scale"), workers=1)
    fadings: tuple[Fading, ...] = ("cir", "large_scale")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(size, fading, Path(folder))
            for size in SIZES
            for fading in fadings
            if large or (size, fading) != (LARGE, "cir")
        ]
    show(rows, Console())


if __name__ == "__main__":
    typer.run(main)
