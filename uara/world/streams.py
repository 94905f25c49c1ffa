"""Counter-based randomness: a draw is a function of its keys, never of what was drawn before.

So every controller meets the same arrivals, lengths and acceptance, whatever it decides.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a draw is for; the last key of its stream."""

    ARRIVAL = 1
    TASK = 2
    PROMPT = 3
    OUTPUT = 4
    ACCEPTANCE = 5
    BURST = 6
    CONTINUATION = 7
    ACCEPTANCE_STATE = 8
    TRACE = 9
    DRIFT = 10
    OUTAGE_GAP = 11
    OUTAGE_LENGTH = 12
    BATTERY = 13
    REST_OF_ANSWER = 14
    REST_OF_OUTAGE = 15


def _mix(value: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) to int64, wrapping."""
    # In place where a fresh tensor is at hand: memory is what this waits for.
    value = (value >> 30).bitwise_and_(0x3FFFFFFFF).bitwise_xor_(value).mul_(_MIX_1)
    value = (value >> 27).bitwise_and_(0x1FFFFFFFFF).bitwise_xor_(value).mul_(_MIX_2)
    return (value >> 31).bitwise_and_(0x1FFFFFFFF).bitwise_xor_(value)


def uniform(*keys: Tensor | int) -> Tensor:
    """Draw uniforms in (0, 1), one for each element of the broadcast keys.

    Args:
        keys: int64 tensors or integers that broadcast, e.g. (episode, device, request, purpose);
            the order matters.

    Returns:
        float64 in the broadcast shape.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        state = _mix(state + _GOLDEN + _mix(torch.as_tensor(key, dtype=torch.int64) + _GOLDEN))
    bits = (state >> 11).bitwise_and_(0x1FFFFFFFFFFFFF)
    return bits.to(torch.float64).add_(0.5).mul_(2.0**-53)
