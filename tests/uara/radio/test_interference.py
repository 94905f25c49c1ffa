"""Interference against two cells reckoned by hand, against plain loops, and its symmetries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uara.radio.interference import (
    downlink_interference_by_pair_w_per_hz,
    downlink_noise_by_pair_w_per_hz,
    mean_density_w_per_hz,
    uplink_interference_by_pair_w_per_hz,
    uplink_interference_w_per_hz,
    uplink_noise_by_pair_w_per_hz,
    uplink_noise_w_per_hz,
)
from uara.radio.link import LinkConfig, rate_bps

REUSE = LinkConfig(interference="reuse1")
BAND_HZ = 1e7


def near(value: float, rel: float = 1e-4) -> object:
    """Compare densities: they are far smaller than the absolute tolerance by default."""
    return pytest.approx(value, rel=rel, abs=0)


def assert_equal_densities(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def numbers(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# Two cells with one device each: device 0 on server 0, device 1 on server 1.
GAIN = torch.tensor([[[1e-10, 1e-11], [3e-12, 2e-11]]], dtype=torch.float64)
SERVER = torch.tensor([[0, 1]])


def networks(seed: int, num: int = 3, devices: int = 5, servers: int = 4) -> tuple[Tensor, ...]:
    """Draw gains, servers of devices (one device disturbs all), and densities of both sides."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, dtype=torch.float64)

    gain = 10 ** (-13 + 5 * uniform(num, devices, servers))
    server = torch.randint(servers, (num, devices), generator=draw)
    server[0, 0] = -1
    return gain, server, 1e-8 * uniform(num, devices), 1e-7 * uniform(num, servers)


def test_uplink_sinr_of_two_cells_by_hand() -> None:
    # Device 1 sends 0.2 W a quarter of the time: 0.2 x 0.25 / 10 MHz = 5e-9 W/Hz, of which server 0
    # hears 3e-12: 1.5e-20 W/Hz, over -169 dBm/Hz of noise. Device 0 sends 0.1 W over 2 MHz: server
    # 0 hears 5e-18 W/Hz.
    density = mean_density_w_per_hz(numbers(0.1, 0.2), numbers(BAND_HZ), numbers(1.0, 0.25))
    noise = uplink_noise_w_per_hz(REUSE, GAIN, SERVER, density)
    assert isinstance(noise, Tensor)
    sinr = 5e-18 / noise[0, 0]
    assert float(sinr) == near(5e-18 / (1.5e-20 + 1.2589e-20))
    # Server 1 hears device 0: 0.1 / 10 MHz = 1e-8 W/Hz times 1e-11.
    assert float(noise[0, 1]) == near(1e-19 + 1.2589e-20)


def test_downlink_sinr_of_two_cells_by_hand() -> None:
    # Servers send 2 W over 10 MHz, 2e-7 W/Hz, server 1 half of the time. Device 0 hears 2e-17 W/Hz
    # of its server, 1e-18 of the other, and -165 dBm/Hz of noise.
    density = mean_density_w_per_hz(numbers(2.0, 2.0), numbers(BAND_HZ), numbers(1.0, 0.5))
    noise = downlink_noise_by_pair_w_per_hz(REUSE, GAIN, density)
    assert isinstance(noise, Tensor)
    assert 2e-17 / float(noise[0, 0, 0]) == near(2e-17 / (1e-18 + 3.1623e-20))
    # On server 1 it would hear server 0 all the time: as much as its signal would be now.
    assert float(noise[0, 0, 1]) == near(2e-17 + 3.1623e-20)


def test_a_move_takes_the_own_signal_out_of_the_interference() -> None:
    # Device 0 on server 1 would share it with device 1, and nobody would be left elsewhere.
    pair = uplink_interference_by_pair_w_per_hz(GAIN, SERVER, numbers(1e-8, 5e-9))
    assert pair[0, 0].tolist() == [near(3e-12 * 5e-9, 1e-12), 0.0]
    assert pair[0, 1].tolist() == [0.0, near(1e-11 * 1e-8, 1e-12)]


def test_sums_are_those_of_plain_loops() -> None:
    gain, server, device, site = networks(0)
    num, devices, servers = gain.shape
    at_server = uplink_interference_w_per_hz(gain, server, device)
    uplink = uplink_interference_by_pair_w_per_hz(gain, server, device)
    downlink = downlink_interference_by_pair_w_per_hz(gain, site)
    for b in range(num):
        for e in range(servers):
            others = [k for k in range(devices) if server[b, k] != e]
            heard = sum(float(gain[b, k, e] * device[b, k]) for k in others)
            assert float(at_server[b, e]) == near(heard, 1e-9)
            for m in range(devices):
                up = sum(float(gain[b, k, e] * device[b, k]) for k in others if k != m)
                down = sum(float(gain[b, m, o] * site[b, o]) for o in range(servers) if o != e)
                assert float(uplink[b, m, e]) == near(up, 1e-9)
                assert float(downlink[b, m, e]) == near(down, 1e-9)


def test_both_uplink_forms_agree_at_the_own_server() -> None:
    gain, server, density, _ = networks(1)
    server = server.clamp_min(0)
    pair = uplink_noise_by_pair_w_per_hz(REUSE, gain, server, density)
    own = uplink_noise_w_per_hz(REUSE, gain, server, density)
    assert isinstance(pair, Tensor)
    assert_equal_densities(pair.gather(2, server.unsqueeze(-1)).squeeze(-1), own)


def test_own_bands_know_noise_alone() -> None:
    gain, server, device, site = networks(2)
    link = LinkConfig()
    assert uplink_noise_w_per_hz(link, gain, server, device) == link.uplink_noise_w_per_hz
    assert uplink_noise_by_pair_w_per_hz(link, gain, server, device) == link.uplink_noise_w_per_hz
    assert downlink_noise_by_pair_w_per_hz(link, gain, site) == link.downlink_noise_w_per_hz


def test_one_server_alone_is_disturbed_by_nobody() -> None:
    gain, server, device, site = networks(3, num=1, servers=1)
    server = server.clamp_min(0)
    assert not uplink_interference_by_pair_w_per_hz(gain, server, device).any()
    assert not downlink_interference_by_pair_w_per_hz(gain, site).any()


def test_the_weak_are_not_lost_beside_the_strong() -> None:
    # In single precision a total minus its strong part would leave rounding errors alone.
    gain = torch.tensor([[[1e-7, 1e-15, 1e-15]]])
    downlink = downlink_interference_by_pair_w_per_hz(gain, torch.full((1, 3), 2e-7))
    assert float(downlink[0, 0, 0]) == near(4e-22, 1e-5)


@pytest.mark.parametrize("adaptation", ["shannon", "mcs"])
@given(seed=st.integers(0, 10**6), factor=st.floats(1.0, 1e3))
def test_an_interferer_never_raises_a_rate(adaptation: str, seed: int, factor: float) -> None:
    gain, server, device, site = networks(seed)
    server = server.clamp_min(0)
    link = LinkConfig.model_validate({"interference": "reuse1", "adaptation": adaptation})

    def rates(device: Tensor, site: Tensor) -> Tensor:
        power, hertz = numbers(0.2), numbers(1e6)
        up = uplink_noise_by_pair_w_per_hz(link, gain, server, device)
        down = downlink_noise_by_pair_w_per_hz(link, gain, site)
        return torch.stack(
            (
                rate_bps(gain, power, hertz, up, link, "uplink"),
                rate_bps(gain, power, hertz, down, link, "downlink"),
            )
        )

    louder_device, louder_site = device.clone(), site.clone()
    louder_device[:, -1] *= factor
    louder_site[:, -1] *= factor
    alone = rates(torch.zeros_like(device), torch.zeros_like(site))
    here, louder = rates(device, site), rates(louder_device, louder_site)
    assert (here <= alone).all()
    assert (louder <= here * (1 + 1e-12)).all()


def test_relabelling_devices_relabels_what_they_meet() -> None:
    gain, server, device, site = networks(4)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = (gain[:, order], server[:, order], device[:, order])
    assert_equal_densities(
        uplink_interference_by_pair_w_per_hz(*moved),
        uplink_interference_by_pair_w_per_hz(gain, server, device)[:, order],
    )
    assert_equal_densities(
        uplink_interference_w_per_hz(*moved), uplink_interference_w_per_hz(gain, server, device)
    )
    assert_equal_densities(
        downlink_interference_by_pair_w_per_hz(gain[:, order], site),
        downlink_interference_by_pair_w_per_hz(gain, site)[:, order],
    )


def test_shared_bands_change_rates() -> None:
    gain, server, device, _ = networks(5)
    server = server.clamp_min(0)
    power, hertz = numbers(0.2), numbers(1e6)
    shared = uplink_noise_by_pair_w_per_hz(REUSE, gain, server, device)
    alone = rate_bps(gain, power, hertz, REUSE.uplink_noise_w_per_hz, REUSE)
    assert (rate_bps(gain, power, hertz, shared, REUSE) < alone).any()
