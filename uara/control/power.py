"""Rules for the transmit power of devices."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from uara.network import NetworkState

PowerRule = Callable[[NetworkState], Tensor]


def full(state: NetworkState) -> Tensor:
    """Send at the limit, (B, M): fastest where servers have bands of their own."""
    return state.power_max_w


POWER_RULES: dict[str, PowerRule] = {"full": full}
