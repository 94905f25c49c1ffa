"""From SINR to bits per second and hertz by 5G NR's modulation and coding schemes, by look-up.

Shape legend: C modulation and coding schemes (MCS), G points of the SINR grid, K subbands.

The table beside this file is made by `uara.radio.bake_mcs`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Direction = Literal["uplink", "downlink"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

BLER_TARGET = 0.1  # 3GPP TS 38.214 clause 5.2.2.1: what a reported channel quality promises
TABLE_PATH = Path(__file__).with_name("mcs_table.npz")

FINE_STEPS = 10  # of the look-up per step of the table


@dataclass(frozen=True)
class McsTable:
    """Block error curves of one direction, at one code block size."""

    efficiency: Tensor  # (C,) bit/s/Hz if every block arrives; 0 where there is no curve
    bler: Tensor  # (C, G) block error rate; 1 where there is no curve
    eesm_beta: Tensor  # (C,) linear
    sinr_min_db: float
    sinr_step_db: float
    code_block_bits: int

    @property
    def sinr_db(self) -> Tensor:
        """The grid, (G,)."""
        return self.sinr_min_db + self.sinr_step_db * torch.arange(
            self.bler.shape[1], dtype=self.bler.dtype
        )

    @property
    def goodput(self) -> Tensor:
        """Bit/s/Hz that arrive, (C, G); 0 where an MCS misses the error target."""
        arrives = self.efficiency[:, None] * (1 - self.bler)
        return torch.where(self.bler <= BLER_TARGET, arrives, 0.0)

    @property
    def best(self) -> Tensor:
        """Bit/s/Hz that arrive with the best MCS, (G,).

        Of those that keep the error target the best is the largest or, just where the largest comes
        into reach and still loses a tenth of its blocks, the one below; so it grows with the SINR.
        """
        return self.goodput.amax(0)


@cache
def mcs_table(direction: Direction) -> McsTable:
    """Load the table of a direction: PUSCH for the uplink, PDSCH for the downlink."""
    with np.load(TABLE_PATH, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    metadata = json.loads(str(arrays["metadata"]))
    link = metadata["links"].index(direction)
    return McsTable(
        efficiency=torch.from_numpy(arrays["efficiency"][link]).double(),
        bler=torch.from_numpy(arrays["bler"][link]).double(),
        eesm_beta=torch.from_numpy(arrays["eesm_beta"]).double(),
        sinr_min_db=metadata["sinr_min_db"],
        sinr_step_db=metadata["sinr_step_db"],
        code_block_bits=metadata["code_block_bits"],
    )


@cache
def staircase(direction: Direction, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Tabulate the best goodput at steps so fine that they need no interpolation."""
    table = mcs_table(direction)
    coarse = table.best.numpy()
    fine = np.arange((len(coarse) - 1) * FINE_STEPS + 1) / FINE_STEPS
    best = np.interp(fine, np.arange(len(coarse)), coarse)
    best[fine < np.flatnonzero(coarse)[0]] = 0  # no half of the lowest MCS before its threshold
    return torch.from_numpy(best).to(device, dtype)


def mcs_efficiency(sinr: Tensor, direction: Direction) -> Tensor:
    """Compute the bit/s/Hz that arrive with the best MCS whose block error rate is at most 10 %.

    Linear between the table's points in dB, in steps of 0.01 dB rounded down; 0 below the lowest
    MCS, constant above the table. It never falls with the SINR.

    Args:
        sinr: linear, any shape.
        direction: which of the tables.

    Returns:
        bit/s/Hz, shape of `sinr`.
    """
    table = mcs_table(direction)
    best = staircase(direction, sinr.dtype, sinr.device)
    step_db = table.sinr_step_db / FINE_STEPS
    position = sinr.log10().mul_(10 / step_db).sub_(table.sinr_min_db / step_db)
    # Indices of 32 bits halve the memory that this passes over.
    step = position.clamp_(0, best.shape[0] - 1).to(torch.int32)
    found: Tensor = best.index_select(0, step.flatten())
    return found.view(sinr.shape)


def effective_sinr_db(sinr: Tensor, mcs: Tensor) -> Tensor:
    """Compute the SINR of the flat channel on which an MCS errs as often as on these subbands.

    Exponential effective SINR mapping, -beta ln(mean over subbands of exp(-SINR / beta)), with
    the beta of each MCS from the table; the same betas hold in both directions.

    Args:
        sinr: (..., K) linear.
        mcs: MCS indices, long, that broadcast to (...).

    Returns:
        dB, broadcast shape of (...) and `mcs`.
    """
    beta = mcs_table("uplink").eesm_beta.to(sinr.device, sinr.dtype)[mcs]
    # Taking the weakest subband out of the exponentials keeps strong channels from underflow.
    weakest = sinr.amin(-1)
    excess = (sinr - weakest.unsqueeze(-1)) / beta.unsqueeze(-1)
    effective = weakest - beta * (excess.neg().exp().mean(-1)).log()
    return 10 * effective.log10()


def subband_efficiency(sinr: Tensor, direction: Direction) -> Tensor:
    """Compute the bit/s/Hz that arrive over subbands with one MCS for all of them.

    Args:
        sinr: (..., K) linear.
        direction: which of the tables.

    Returns:
        bit/s/Hz, (...); on a flat channel `mcs_efficiency` of its SINR, up to the grid's step.
    """
    table = mcs_table(direction)
    schemes = torch.nonzero(table.efficiency).flatten()  # (C,) of those with a curve
    goodput = table.goodput.to(sinr.device, sinr.dtype)
    effective_db = effective_sinr_db(sinr.unsqueeze(-2), schemes)  # (..., C)
    position = (effective_db - table.sinr_min_db) / table.sinr_step_db
    # The point below: no MCS is used at a SINR at which it would miss the target.
    point = position.clamp(0, goodput.shape[1] - 1).long()
    best: Tensor = goodput[schemes, point].amax(-1)
    return best
