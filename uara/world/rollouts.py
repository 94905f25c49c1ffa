"""Copies of a world, played ahead: the simulator behind look-ahead controllers.

Shape legend: B networks of the world, K copies, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from uara.control.decisions import select_rows
from uara.control.objective import total_remaining_s
from uara.network import Controller, Decision
from uara.world.acceptance import TraceAcceptance, Traces
from uara.world.channel import HeldChannel
from uara.world.futures import sample_outages, sample_requests
from uara.world.outages import draw_outages
from uara.world.requests import RequestTable, draw_requests
from uara.world.world import World

SMALLEST = 64  # copies that a world for rollouts has room for


class WorldSimulator:
    """Plays copies of a world's networks; see `uara.control.lookahead.Simulator`.

    In sampled futures the channel stays as it is known now, and machines are the true ones.
    """

    def __init__(self, world: World, make: Callable[[int], World], seed: int = 0) -> None:
        """Bind to a world.

        Args:
            world: that a controller decides for.
            make: makes worlds of the same configuration, of any number of networks.
            seed: of what the player draws.
        """
        self._world, self._make, self._seed = world, make, seed
        self._scratch: dict[int, World] = {}
        process = world.config.requests.acceptance
        self._traces: Traces | None = None
        if isinstance(process, TraceAcceptance):
            tasks = tuple(task.name for task in world.config.requests.tasks)
            self._traces = Traces.load(Path(process.path), tasks)

    def play(
        self,
        networks: Tensor,
        futures: Tensor | None,
        first: Decision,
        player: Controller,
        slots: int,
    ) -> Tensor:
        """Play copies and return what they cost, (K,) request-seconds."""
        count = len(networks)
        scratch = self._room_for(count)
        spare = scratch.num_networks - count
        rows = torch.cat((networks, networks[:1].expand(spare)))
        saved = {name: values[rows] for name, values in self._world.state_dict().items()}
        if futures is None:
            scratch.channel = self._world.channel
        else:
            saved |= self._sampled(rows, torch.cat((futures, futures[:1].expand(spare))), saved)
            scratch.channel = self._held(rows)
        saved["requests.arrival_s"] = self._until(rows, saved, slots)
        scratch.load_state_dict(saved)
        everybody = torch.ones(len(rows), dtype=torch.bool)
        player.reset(everybody, torch.Generator().manual_seed(self._seed))
        decision = _padded(first, spare)
        cost = torch.zeros(len(rows), dtype=torch.float64)
        for slot in range(slots + scratch.config.drain_slots):
            if slot > 0:
                decision = player.decide(scratch.state())
            outcome = scratch.step(decision)
            player.observe(outcome)
            cost += outcome.alive_s
            if slot >= slots and not bool(scratch.progress.active.any()):
                break
        else:
            # A request that is left counts with what its controller predicts.
            state = scratch.state()
            cost += total_remaining_s(state, player.decide(state), scratch.physics)
        return cost[:count]

    def _room_for(self, count: int) -> World:
        """Take a world of at least so many networks; sizes are powers of two."""
        size = max(SMALLEST, 1 << (count - 1).bit_length())
        if size not in self._scratch:
            self._scratch[size] = self._make(size)
        return self._scratch[size]

    def _until(self, rows: Tensor, saved: dict[str, Tensor], slots: int) -> Tensor:
        """Leave out the requests that arrive after so many slots, (K, M, R) arrivals."""
        arrival_s = saved["requests.arrival_s"]
        number = torch.arange(arrival_s.shape[2])
        end_s = (self._world.time_s()[rows] + slots * self._world.config.slot_s)[:, None, None]
        is_later = (number >= saved["progress.arrived"][..., None]) & (arrival_s >= end_s)
        return arrival_s.masked_fill(is_later, torch.inf)

    def _held(self, rows: Tensor) -> HeldChannel:
        """Freeze the channel as it is known."""
        world, slot = self._world.world, self._world.progress.slot
        channel = self._world.channel
        return HeldChannel(
            channel.known_gain(world, slot)[rows],
            channel.known_reachable(world, slot)[rows],
            channel.position_m(world, slot)[rows],
        )

    def _sampled(self, rows: Tensor, keys: Tensor, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw requests and outages that are possible, by their names in a saved state."""
        world, config = self._world, self._world.config
        known = RequestTable(
            **{
                field.name: saved[f"requests.{field.name}"]
                for field in fields(RequestTable)
                if f"requests.{field.name}" in saved
            }
        )
        fresh = draw_requests(
            keys,
            world.num_devices,
            config.horizon_slots * config.slot_s,
            config.requests,
            world.acceptance_mean,
            world.acceptance_std,
            self._traces,
        )
        time_s = world.time_s()[rows]
        table = sample_requests(
            known,
            fresh,
            keys,
            time_s=time_s,
            arrived=saved["progress.arrived"],
            finished=saved["progress.finished"],
            tokens=saved["progress.tokens"],
            acceptance=world.state().acceptance[rows],
            lengths=world.lengths,
        )
        sampled = {f"requests.{name}": values for name, values in table.tensors().items()}
        if config.outages is not None:
            horizon_s = (config.horizon_slots + config.drain_slots) * config.slot_s
            outages = sample_outages(
                (saved["outages.0"], saved["outages.1"]),
                draw_outages(keys, world.num_servers, horizon_s, config.outages),
                keys,
                time_s=time_s,
                slot_s=config.slot_s,
                config=config.outages,
            )
            sampled |= {f"outages.{k}": values for k, values in enumerate(outages)}
        return sampled


def _padded(decision: Decision, spare: int) -> Decision:
    """Repeat the first row so often below the others."""
    rows = torch.cat((torch.arange(len(decision.server)), torch.zeros(spare, dtype=torch.long)))
    return select_rows(decision, rows)
