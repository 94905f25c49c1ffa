"""Flat observations: every entry comes from its own network, device and server."""

from __future__ import annotations

import torch

from envs import Observation, schema
from envs.flat import device_space, flatten_devices, flatten_network, network_space

B, M, E = 2, 4, 3
DEVICE, PAIR, SERVER = (len(getattr(schema(), group)) for group in ("device", "pair", "server"))


def tagged() -> Observation:
    """Number each cell by who it belongs to: network, device (0 for none), server (0 for none)."""
    network = 100.0 * torch.arange(1, B + 1)
    device, server = 10.0 * torch.arange(1, M + 1), 1.0 * torch.arange(1, E + 1)
    pair = network[:, None, None] + device[:, None] + server
    return Observation(
        device=(network[:, None] + device)[..., None].expand(B, M, DEVICE),
        pair=pair[..., None].expand(B, M, E, PAIR),
        server=(network[:, None] + server)[..., None].expand(B, E, SERVER),
        mask=pair > 0,
        active=torch.ones(B, M, dtype=torch.bool),
    )


def test_device_rows_hold_own_cells_and_those_of_servers() -> None:
    rows = flatten_devices(tagged())
    for b in range(B):
        for m in range(M):
            own = [100.0 * (b + 1) + 10 * (m + 1)] * DEVICE
            pairs = [own[0] + e for e in range(1, E + 1) for _ in range(PAIR)]
            servers = [100.0 * (b + 1) + e for e in range(1, E + 1) for _ in range(SERVER)]
            assert rows[b, m].tolist() == own + pairs + servers
    assert device_space(E).shape == rows.shape[2:]


def test_network_rows_hold_the_cells_of_their_network_alone() -> None:
    rows = flatten_network(tagged())
    assert network_space(M, E).shape == rows.shape[1:]
    values, mask = rows[:, : -M * E], rows[:, -M * E :]
    assert ((values // 100).long() == torch.arange(1, B + 1)[:, None]).all()
    assert (mask == 1).all()
