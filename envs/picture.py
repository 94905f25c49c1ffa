"""A picture of the first network of a batch: sites, devices, who uses which server."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from envs.batched import BatchedEnv
from uara.local_prediction import server_load
from uara.network import NetworkState


def render(env: BatchedEnv, mode: str | None) -> NDArray[np.uint8] | None:
    """Draw the first network of an environment where the render mode asks for an image."""
    if mode != "rgb_array":
        return None
    return draw_state(env.state, env.world.bank.site_position_m)


def draw_state(state: NetworkState, site_position_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw the first network of a state, sites (E, 2) in metres, as an image (H, W, 3).

    Devices show the age of their request in seconds, servers the share of the devices they serve.
    """
    # matplotlib is slow to import and most environments are never drawn.
    from uara.figures.network_map import draw_network

    age_s = state.age_s.masked_fill(~state.has_request, torch.nan)
    share = server_load(state).requests / state.num_devices
    picture: NDArray[np.uint8] = draw_network(
        None,
        site_position_m=site_position_m,
        device_position_m=state.position_m[0].numpy(),
        server=state.server[0].numpy(),
        latency_s=age_s[0].numpy(),
        server_load=share[0].numpy(),
        title=f"t = {float(state.time_s[0]):.1f} s",
    )
    return picture
