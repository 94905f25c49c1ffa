"""Link adaptation for compiled code: the struct `Link` of native_link.h and its tables."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.radio.link import LinkConfig
from uara.radio.mcs import FINE_STEPS, mcs_table, staircase


class LinkConstants(ctypes.Structure):
    """The struct `Link` of the header."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in (
            "is_mcs", "inverse_gap", "efficiency_max", "steps_per_log", "first_step", "last_step",
        )
    )  # fmt: skip


@dataclass(frozen=True)
class NativeLink:
    """A link model as compiled code reads it."""

    constants: LinkConstants
    uplink: Tensor  # bit/s/Hz by steps of the SINR in dB
    downlink: Tensor

    @classmethod
    def of(cls, link: LinkConfig) -> NativeLink:
        """Tabulate a link model."""
        uplink, downlink = (
            staircase(direction, torch.float32, torch.device("cpu"))
            for direction in ("uplink", "downlink")
        )
        up, down = mcs_table("uplink"), mcs_table("downlink")
        assert (up.sinr_min_db, up.sinr_step_db) == (down.sinr_min_db, down.sinr_step_db), (
            "both directions share one grid"
        )
        steps_per_db = FINE_STEPS / up.sinr_step_db
        constants = LinkConstants(
            is_mcs=float(link.adaptation == "mcs"),
            inverse_gap=10 ** (-link.snr_gap_db / 10),
            efficiency_max=link.spectral_efficiency_max,
            steps_per_log=10 / math.log(10) * steps_per_db,
            first_step=up.sinr_min_db * steps_per_db,
            last_step=len(uplink) - 1,
        )
        return cls(constants, uplink, downlink)
