"""The bank as a world walks along it: true gains, those that controllers know, positions.

Shape legend: B networks, W worlds of the bank, T its slots, M devices, E servers, P slots of a walk
to the end and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from uara.errors import UserError
from uara.radio.bank import ChannelBank
from uara.radio.replay import filtered_gain, walk
from uara.world.config import WorldConfig, reachable


class Channel(Protocol):
    """Gains and positions by world and slot, (B,) long both."""

    def true_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the gains of the slot, (B, M, E)."""
        ...

    def true_rows(self, world: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows of gains (K, M, E) and each network's row in them, (B,) long."""
        ...

    def known_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the gains that are known by now, (B, M, E)."""
        ...

    def known_reachable(self, world: Tensor, slot: Tensor) -> Tensor:
        """Tell which servers are in reach by the known gains, (B, M, E) bool."""
        ...

    def position_m(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the devices' positions, (B, M, 2)."""
        ...


@dataclass(frozen=True)
class HeldChannel:
    """A channel that stays as it is: what somebody expects who cannot see the tracks."""

    gain: Tensor  # (B, M, E)
    reachable: Tensor  # (B, M, E) bool
    position: Tensor  # (B, M, 2)

    def true_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the held gains."""
        return self.gain

    def true_rows(self, world: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Return the held gains, a row for each network."""
        return self.gain, torch.arange(len(self.gain))

    def known_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the held gains."""
        return self.gain

    def known_reachable(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the held reach."""
        return self.reachable

    def position_m(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the held positions."""
        return self.position


class ChannelReplay:
    """Looks gains and positions up by world and slot."""

    def __init__(self, config: WorldConfig, bank: ChannelBank) -> None:
        """Take over a bank.

        Raises:
            UserError: if the bank has other sizes, another slot or fewer slots than the config.
        """
        _check_bank(config, bank)
        gain = bank.gain()
        self._delay = config.csi_delay_slots
        self._walk = torch.from_numpy(walk(gain.shape[1]))
        self._gain = torch.from_numpy(gain)  # (W, T, M, E)
        self._known = filtered_gain(gain, config.slot_s, config.gain_filter_s)  # (W, P, M, E)
        self._reachable = reachable(self._known, config.reach_gain_db)
        self._position = torch.from_numpy(bank.position_m)

    def true_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the gains of the slot, (B, M, E); world and slot are (B,) long."""
        return look_up(self._gain, world, self._bank_slot(slot))

    def true_rows(self, world: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Return all gains (W T, M, E) and each network's row in them, (B,) long."""
        return self._gain.flatten(0, 1), world * self._gain.shape[1] + self._bank_slot(slot)

    def known_gain(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the filtered gains that are known by now, (B, M, E)."""
        return look_up(self._known, world, self._known_slot(slot))

    def known_reachable(self, world: Tensor, slot: Tensor) -> Tensor:
        """Tell which servers are in reach by the known gains, (B, M, E) bool."""
        return look_up(self._reachable, world, self._known_slot(slot))

    def position_m(self, world: Tensor, slot: Tensor) -> Tensor:
        """Return the devices' positions, (B, M, 2)."""
        return look_up(self._position, world, self._bank_slot(slot))

    def _bank_slot(self, slot: Tensor) -> Tensor:
        """Map a slot to the bank, (B,)."""
        return self._walk[slot % len(self._walk)]

    def _known_slot(self, slot: Tensor) -> Tensor:
        """Find the slot of the walk whose gains are known by now, (B,)."""
        return (slot - self._delay).clamp_min(0) % len(self._walk)


def look_up(table: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Take table[first, second] by one index, which is faster; both are (B,) long."""
    return table.flatten(0, 1).index_select(0, first * table.shape[1] + second)


def _check_bank(config: WorldConfig, bank: ChannelBank) -> None:
    """Refuse a bank that cannot carry the configuration."""
    _, slots, _, servers = bank.gain_db.shape
    if servers != len(config.servers):
        raise UserError(
            f"the bank has {servers} servers but the config names {len(config.servers)}; "
            "build a bank for this config with `uara channels build`"
        )
    if config.slot_s != bank.config.slot_s:
        raise UserError(
            f"slot_s is {config.slot_s} but the bank's slots last {bank.config.slot_s}; "
            "make them equal or build a bank for this config with `uara channels build`"
        )
    if config.horizon_slots > slots:
        raise UserError(
            f"horizon_slots is {config.horizon_slots} but the bank has {slots} slots per world; "
            "shorten the horizon or build a longer bank"
        )
