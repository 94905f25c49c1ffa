"""Replays a channel bank over time: the gain of a slot, and the gain that a controller knows.

Shape legend: W worlds, T slots of the bank, P = max(1, 2 T - 2) slots of a walk to the end and
back, M devices, E servers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def walk(num_slots: int) -> NDArray[np.int64]:
    """List the bank's slots of a walk to the end of the tracks and back, (P,); then it repeats.

    Beyond the bank's end the tracks are walked back, so that nothing jumps.
    """
    forth = np.arange(num_slots)
    return np.concatenate([forth, forth[-2:0:-1]])


def filtered_gain(gain: NDArray[np.float32], slot_s: float, filter_s: float) -> Tensor:
    """Filter gains exponentially in dB along the walk, as a receiver averages its measurements.

    The layer-3 filter F_t = (1 - a) F_{t-1} + a M_t of 3GPP TS 38.331 clause 5.5.3.2 with
    a = 1 - exp(-slot_s / filter_s), started at the first measurement.

    Args:
        gain: (W, T, M, E) linear.
        slot_s: length of a slot.
        filter_s: time constant; 0 for no filter.

    Returns:
        (W, P, M, E) linear float32.
    """
    along = torch.from_numpy(gain)[:, torch.from_numpy(walk(gain.shape[1]))]
    if filter_s == 0:
        return along
    weight = 1 - math.exp(-slot_s / filter_s)
    level = along.log()
    for slot in range(1, level.shape[1]):
        level[:, slot] = torch.lerp(level[:, slot - 1], level[:, slot], weight)
    return level.exp()
