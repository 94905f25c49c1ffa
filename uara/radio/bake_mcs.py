"""Bakes the block error curves of Sionna SYS into the table that `uara.radio.mcs` looks up.

Run as `python -m uara.radio.bake_mcs`. Shape legend: L links (0 uplink, 1 downlink), C MCS indices,
G points of the SINR grid.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uara.files import whole_file
from uara.radio.mcs import TABLE_PATH

# What one slot of 1 ms carries over about 500 kHz at 2 bit/s/Hz.
CODE_BLOCK_BITS = 1000
MCS_TABLE_INDEX = 1  # 64-QAM at most
SINR_MIN_DB, SINR_MAX_DB, SINR_STEP_DB = -5.0, 30.0, 0.1


def bake() -> dict[str, NDArray[np.generic]]:
    """Read Sionna's tables at one code block size.

    PUSCH indices mean modulation and rate of 3GPP TS 38.214 Table 6.1.4.1-1 (transform precoding),
    PDSCH indices those of Table 5.1.3.1-1.

    Returns:
        efficiency (L, C): modulation order times code rate in bit/s/Hz, 0 without a curve;
        bler (L, C, G): block error rate, 1 without a curve; eesm_beta (C,); metadata: JSON text.
    """
    import torch
    from sionna.sys import EESM, PHYAbstraction

    phy = PHYAbstraction(
        snr_db_interp_min_max_delta=(SINR_MIN_DB, SINR_MAX_DB + SINR_STEP_DB / 2, SINR_STEP_DB),
        cbs_interp_min_max_delta=(CODE_BLOCK_BITS, CODE_BLOCK_BITS + 1, 1),
        device="cpu",
    )
    curves = phy.bler_table_interp[:, MCS_TABLE_INDEX - 1, :, 0].double().numpy()
    has_curve = np.isfinite(curves).all(-1)
    efficiency = np.zeros(has_curve.shape)
    for link, mcs in np.argwhere(has_curve).tolist():
        order, code_rate = phy._mcs_decoder_fun(
            *(torch.tensor(value) for value in (mcs, MCS_TABLE_INDEX, link)),
            transform_precoding=link == 0,
        )
        efficiency[link, mcs] = float(order) * float(code_rate)
    metadata = {
        "source": "sionna.sys.PHYAbstraction and EESM (Apache-2.0)",
        "sionna_version": version("sionna-no-rt"),
        "mcs_table_index": MCS_TABLE_INDEX,
        "mcs_meaning": ["3GPP TS 38.214 Table 6.1.4.1-1", "3GPP TS 38.214 Table 5.1.3.1-1"],
        "links": ["uplink", "downlink"],
        "code_block_bits": CODE_BLOCK_BITS,
        "sinr_min_db": SINR_MIN_DB,
        "sinr_step_db": SINR_STEP_DB,
    }
    return {
        "efficiency": efficiency.astype(np.float32),
        "bler": np.where(has_curve[..., None], curves, 1.0).astype(np.float32),
        "eesm_beta": EESM(device="cpu").beta_tensor[MCS_TABLE_INDEX - 1].float().numpy(),
        "metadata": np.array(json.dumps(metadata)),
    }


def write(path: Path) -> None:
    """Bake the table into a file, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **bake())


if __name__ == "__main__":
    write(TABLE_PATH)
