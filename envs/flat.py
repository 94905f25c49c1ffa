"""Flat arrays for libraries that know no (device, server) pairs: observations and actions.

Shape legend: B networks, M devices, E servers, F features, A entries of a flat action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from envs.action import Action, ControlConfig, Head
from envs.observation import Observation, bounds
from uara.errors import UserError

FlatStyle = Literal["discrete", "box"]

Array = NDArray[np.float32]


def flatten_devices(observation: Observation) -> Tensor:
    """Lay out what each device may read, (B, M, Fd + E Fp + E Fs): own row, own pairs, servers."""
    pair, server = observation.pair.flatten(2), observation.server.flatten(1)
    shared = server.unsqueeze(1).expand(-1, pair.shape[1], -1)
    return torch.cat((observation.device, pair, shared), dim=-1)


def flatten_network(observation: Observation) -> Tensor:
    """Lay out the whole network, (B, M Fd + M E Fp + E Fs + M E): the last part is the mask."""
    parts = (observation.device, observation.pair, observation.server, observation.mask.float())
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def device_space(num_servers: int) -> spaces.Box:
    """Bound the rows of `flatten_devices`."""
    return _box([("device", 1), ("pair", num_servers), ("server", num_servers)], num_mask=0)


def network_space(num_devices: int, num_servers: int) -> spaces.Box:
    """Bound the rows of `flatten_network`."""
    pairs = num_devices * num_servers
    return _box([("device", num_devices), ("pair", pairs), ("server", num_servers)], num_mask=pairs)


def _box(
    groups: list[tuple[Literal["device", "pair", "server"], int]], num_mask: int
) -> spaces.Box:
    """Repeat the bounds of each group of features; a mask lies in [0, 1]."""
    low, high = (
        np.concatenate(
            [bounds(group)[side].repeat(count).numpy() for group, count in groups]
            + [np.full(num_mask, side, dtype=np.float32)]
        )
        for side in (0, 1)
    )
    return spaces.Box(low, high, dtype=np.float32)


def check_learns(control: ControlConfig) -> None:
    """Refuse a configuration without anything to act on.

    Raises:
        UserError: if every choice is made by a rule.
    """
    if not control.learned:
        raise UserError(
            "the control config leaves nothing to learn; set association, bandwidth, power or "
            "draft_length to 'learned'"
        )


@dataclass(frozen=True)
class FlatActions:
    """One flat action for a whole network.

    "discrete": a level for each device and learned head; servers and draft lengths are themselves,
    bandwidth and power are cut into equal levels. "box": values in [-1, 1]; the server is the one
    of highest score, the others are mapped to their range.
    """

    control: ControlConfig
    num_devices: int
    num_servers: int
    max_draft_length: int
    style: FlatStyle = "discrete"
    levels: int = 5

    def __post_init__(self) -> None:
        check_learns(self.control)
        if self.levels < 2:
            raise UserError(f"levels is {self.levels}; give at least 2")

    @property
    def space(self) -> spaces.MultiDiscrete | spaces.Box:
        """The space of flat actions: device by device, head by head."""
        widths = [self._width(head) for head in self.control.learned]
        if self.style == "discrete":
            return spaces.MultiDiscrete(np.tile(widths, self.num_devices))
        return spaces.Box(-1.0, 1.0, (self.num_devices * sum(widths),), dtype=np.float32)

    def to_action(self, values: NDArray[Any]) -> Action:
        """Read flat actions (B, A)."""
        flat = torch.from_numpy(np.asarray(values)).view(len(values), self.num_devices, -1)
        chosen: dict[str, Tensor] = {}
        start = 0
        for head in self.control.learned:
            width = self._width(head) if self.style == "box" else 1
            chosen[head] = self._read(head, flat[..., start : start + width])
            start += width
        assert start == flat.shape[-1], f"{flat.shape[-1]} entries per device, expected {start}"
        return Action(**chosen)

    def _width(self, head: Head) -> int:
        """Tell the number of levels ("discrete") or entries ("box") of a head."""
        if head == "server":
            return self.num_servers
        if self.style == "box":
            return 1
        return self.max_draft_length + 1 if head == "draft_length" else self.levels

    def _read(self, head: Head, entries: Tensor) -> Tensor:
        """Read one head, (B, M, its entries) to (B, M)."""
        if self.style == "discrete":
            level = entries.squeeze(-1).long()
            is_share = head in ("bandwidth", "power")
            return level.float() / (self.levels - 1) if is_share else level
        if head == "server":
            return entries.argmax(-1)
        share = ((entries.squeeze(-1).float() + 1) / 2).clamp(0, 1)
        if head == "draft_length":
            return (share * self.max_draft_length).round().long()
        return share
