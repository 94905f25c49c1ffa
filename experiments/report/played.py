"""Plays a controller in one evaluation world and keeps what maps show.

Shape legend: B episodes of the same world, M devices, E servers, N decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.config import TaskConfig
from experiments.evaluation import episode_keys, make_world
from uara.figures.decision_map import draw_decision_map
from uara.figures.network_map import network_figure
from uara.figures.svg import Figure
from uara.local_prediction import server_load
from uara.network import Controller, NetworkState
from uara.radio.bank import ChannelBank

EPISODES = 16  # of requests in the one world that the maps show
MOMENTS = (0.25, 0.5, 0.75, 1.0)  # of the horizon


@dataclass(frozen=True)
class Played:
    """Decisions of a controller in one world, and maps of its first episode.

    Attributes:
        position_m: (N, 2) of devices with a request when they decided.
        server: (N,) chosen.
        site_position_m: (E, 2).
        maps: the network at moments of the horizon, by their time in seconds.
    """

    position_m: NDArray[np.float64]
    server: NDArray[np.int64]
    site_position_m: NDArray[np.float64]
    maps: dict[float, Figure]

    def decision_map(self, title: str) -> Figure:
        """Draw which server was chosen where."""
        return draw_decision_map(self.position_m, self.server, self.site_position_m, title)


def play_world(controller: Controller, task: TaskConfig, bank: ChannelBank) -> Played:
    """Play the first evaluation world over the horizon.

    Args:
        controller: whatever decides.
        task: the task.
        bank: its bank.
    """
    world = make_world(task, bank, EPISODES)
    everyone = torch.ones(EPISODES, dtype=torch.bool)
    index = torch.from_numpy(bank.worlds("evaluation")[:1]).repeat(EPISODES)
    world.reset(everyone, index, episode_keys(task.evaluation.seed, EPISODES))
    controller.reset(everyone, torch.Generator().manual_seed(task.evaluation.seed))
    horizon = task.world.horizon_slots
    shown = {max(round(moment * horizon) - 1, 0) for moment in MOMENTS}
    places, servers, maps = [], [], {}
    for slot in range(horizon):
        state = world.state()
        decision = controller.decide(state)
        asks = state.has_request
        places.append(state.position_m[asks])
        servers.append(decision.server[asks])
        controller.observe(world.step(decision))
        if slot in shown:
            now = world.state()
            maps[float(now.time_s[0])] = _draw_map(now, bank.site_position_m)
    return Played(
        torch.cat(places).double().numpy(),
        torch.cat(servers).long().numpy(),
        bank.site_position_m.astype(np.float64),
        maps,
    )


def _draw_map(state: NetworkState, site_position_m: NDArray[np.float32]) -> Figure:
    """Draw the first network of a state."""
    age_s = state.age_s.masked_fill(~state.has_request, torch.nan)
    return network_figure(
        site_position_m=site_position_m,
        device_position_m=state.position_m[0].numpy(),
        server=state.server[0].numpy(),
        latency_s=age_s[0].numpy(),
        server_load=(server_load(state).requests / state.num_devices)[0].numpy(),
        title=f"t = {float(state.time_s[0]):.1f} s",
    )
