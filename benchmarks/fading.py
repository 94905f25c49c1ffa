"""Both ways of fading beside each other: `python -m benchmarks.fading`.

Shape legend: N samples, L lags.
"""

from __future__ import annotations

import os

# Before torch and numpy are loaded, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from uara.figures.fading import draw_fading
from uara.radio.bank import BankConfig
from uara.radio.rays import draw_rays
from uara.radio.scenario import SCENARIOS
from uara.radio.sionna_bank import build_world
from uara.radio.topology import SPEED_OF_LIGHT_M_S, Chunk, draw_topology
from uara.radio.waves import draw_waves

Fading = Literal["cir", "large_scale"]
FADINGS: tuple[Fading, ...] = ("cir", "large_scale")
QUANTILES = (5, 25, 50, 75, 95)
WORLDS = 4
SPEED_M_S = 3.0
LAGS = np.linspace(0.0, 2.5, 51)  # in units of one over the Doppler frequency


def sample_gain_db(scenario: str, fading: Fading) -> NDArray[np.float64]:
    """Sample gains of one slot of many devices, (N,).

    A world is one chunk of the builder, so both ways of fading meet the same path losses.
    """
    given = {"scenario": scenario, "fading": fading, "indoor_share": 0.4}
    config = BankConfig.model_validate({**given, "num_devices": 680, "num_slots": 1})
    worlds = [build_world(config, (0, k)).gain_db for k in range(WORLDS)]
    return np.concatenate([gain_db.ravel() for gain_db in worlds]).astype(np.float64)


def mean_step_db(fading: Fading) -> float:
    """Mean change of a gain from one slot of half a second to the next, in dB."""
    gain_db = build_world(BankConfig(fading=fading), (0, 0)).gain_db.astype(np.float64)
    return float(np.abs(np.diff(gain_db, axis=0)).mean())


def autocorrelation(fading: Fading, num_devices: int = 1500) -> NDArray[np.float64]:
    """Correlate a tone of links without line of sight with itself over time, (L,)."""
    config = BankConfig(num_devices=num_devices, num_servers=1, num_slots=1, fading=fading)
    rng = np.random.default_rng(1)
    heading = rng.uniform(0, 2 * math.pi, (2, num_devices))
    around = np.stack([np.cos(heading), np.sin(heading)], axis=-1)  # (2, N, 2)
    still = np.zeros(num_devices)
    chunk = Chunk(150 * around[:1], SPEED_M_S * around[1:], still.astype(bool), still[:, None])
    topology = draw_topology(config, np.zeros((1, 2)), chunk)
    generator = torch.Generator().manual_seed(1)
    faded = draw_rays(topology) if fading == "cir" else draw_waves(topology, generator)
    wavenumber = 2 * math.pi * config.carrier_hz / SPEED_OF_LIGHT_M_S
    lag_s = torch.tensor(LAGS / (wavenumber * SPEED_M_S / (2 * math.pi)), dtype=torch.float32)
    response = faded.diffuse(topology.links, torch.zeros(1), lag_s, wavenumber)
    response = response[~topology.links.is_los][:, 0]  # (N, L)
    correlation = (response * response[:, :1].conj()).real.mean(0)
    return np.asarray(correlation / correlation[0], np.float64)


def main(
    picture: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/pictures/fading.png"),
) -> None:
    """Compare quantiles of gain, steps between slots and autocorrelation; draw them."""
    torch.set_num_threads(1)
    gains = {s: {str(f): sample_gain_db(s, f) for f in FADINGS} for s in SCENARIOS}
    table = Table(title="Path gain [dB]", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("scenario", "fading", *(f"{q} %" for q in QUANTILES)):
        table.add_column(column, justify="right")
    for scenario, by_fading in gains.items():
        for fading, gain_db in by_fading.items():
            cells = [f"{x:.1f}" for x in np.percentile(gain_db, QUANTILES)]
            table.add_row(scenario, fading, *cells)
    console = Console()
    console.print(table)
    for fading in FADINGS:
        console.print(f"{fading}: mean step from slot to slot {mean_step_db(fading):.2f} dB")
    draw_fading(gains, LAGS, {f: autocorrelation(f) for f in FADINGS}, picture)
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    typer.run(main)
