"""The Sionna builder: reproducible worlds, tracks that hang together, physics as in TR 38.901."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sionna.phy import config as sionna_config
from sionna.phy.channel import cir_to_ofdm_channel, tr38901

from uara.errors import UserError
from uara.radio.bank import BankConfig
from uara.radio.umi import build_bank, build_world, draw_links

TINY = BankConfig(
    num_devices=3,
    num_servers=2,
    num_slots=6,
    train=1,
    tuning=0,
    validation=0,
    evaluation=1,
    seed=5,
)
SITE_M = np.array([[0.0, 0.0]])
STILL = {"velocity_m_s": np.zeros((1, 1, 2)), "is_indoor": np.zeros(1, bool)}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_a_circle(radius_m, num_devices):
    """Devices about a site at the origin, all at one distance; one slot."""
    angle = np.linspace(0, 2 * np.pi, num_devices, endpoint=False)
    return radius_m * np.stack([np.cos(angle), np.sin(angle)], -1)[None]


def draw_circle(radius_m, num_devices, **changes):
    sionna_config.seed = 7
    return draw_links(
        BankConfig(num_devices=num_devices, num_servers=1, num_slots=1, **changes),
        SITE_M,
        on_a_circle(radius_m, num_devices),
        np.zeros((1, num_devices, 2)),
        np.zeros(num_devices, bool),
    )


def mean_gain_db(config, site_m, position, velocity, seed):
    sionna_config.seed = seed
    indoor = np.zeros(position.shape[1], bool)
    gain = draw_links(config, site_m, position, velocity, indoor).mean_gain(config)
    return (10 * torch.log10(gain)).numpy()  # (M, E, T)


def test_equal_configs_give_equal_banks_and_other_seeds_others():
    calls = []
    bank = build_bank(TINY, workers=1, progress=lambda done, total: calls.append((done, total)))
    again = build_bank(TINY, workers=1)
    other = build_bank(TINY.model_copy(update={"seed": 6}), workers=1)
    np.testing.assert_array_equal(bank.gain_db, again.gain_db)
    np.testing.assert_array_equal(bank.position_m, again.position_m)
    assert (bank.gain_db != other.gain_db).mean() > 0.9
    assert (bank.gain_db[0] != bank.gain_db[1]).mean() > 0.9
    assert np.isfinite(bank.gain_db).all()
    assert calls == [(1, 2), (2, 2)]


def test_a_world_does_not_depend_on_how_many_are_built():
    more = TINY.model_copy(update={"train": 2, "evaluation": 2})
    few, many = build_bank(TINY, workers=1), build_bank(more, workers=1)
    for split in ("train", "evaluation"):
        first = few.gain_db[few.worlds(split)[0]]
        np.testing.assert_array_equal(first, many.gain_db[many.worlds(split)[0]])


@pytest.mark.slow
def test_a_world_does_not_depend_on_the_number_of_workers():
    alone, shared = build_bank(TINY, workers=1), build_bank(TINY, workers=2)
    np.testing.assert_allclose(alone.gain_db.astype(float), shared.gain_db.astype(float), atol=0.13)
    np.testing.assert_array_equal(alone.is_los, shared.is_los)


def test_gains_along_a_track_change_far_less_than_independent_draws():
    config = BankConfig(num_devices=4, num_servers=2, num_slots=24, slot_s=0.5)
    time_s = 0.5 * np.arange(24)
    site = np.array([[-150.0, 0.0], [150.0, 0.0]])
    velocity = np.tile([0.0, 1.0], (24, 4, 1))
    position = np.stack([np.full((24, 4), 30.0), np.tile(time_s[:, None], (1, 4))], -1)
    first, second = (mean_gain_db(config, site, position, velocity, s) for s in (1, 2))
    step = np.abs(np.diff(first, axis=-1)).mean()
    redraw = np.abs(first - second).mean()
    assert step < 0.5 * redraw
    assert step > 0.1


def test_los_path_loss_and_share_follow_the_tables():
    """TR 38.901 Table 7.4.1-1 (UMi LoS, before the breakpoint) and Table 7.4.2-1 (UMi)."""
    distance_2d, num_devices, carrier_ghz = 60.0, 400, 3.5
    links = draw_circle(distance_2d, num_devices)
    distance_3d = math.hypot(distance_2d, 10.0 - 1.5)
    loss_db = 32.4 + 21 * math.log10(distance_3d) + 20 * math.log10(carrier_ghz)
    is_los = links.is_los.flatten()
    got_db = -10 * torch.log10(links.large_scale_gain.flatten()[is_los])
    num_los = int(is_los.sum())
    assert float(got_db.mean()) == pytest.approx(loss_db, abs=4 * 4.0 / num_los**0.5)
    assert float(got_db.std()) == pytest.approx(4.0, rel=0.2)
    share = 18 / distance_2d + math.exp(-distance_2d / 36) * (1 - 18 / distance_2d)
    spread = (share * (1 - share) / num_devices) ** 0.5
    assert num_los / num_devices == pytest.approx(share, abs=4 * spread)


def test_a_los_link_has_the_gain_of_its_sector_antenna():
    """8 dBi towards the device, at most 10 dB less at a sector's edge, some of it diffused."""
    links = draw_circle(60.0, 400)
    is_los = links.is_los.flatten()
    config = BankConfig(num_devices=400, num_servers=1, num_slots=1)
    gain_db = 10 * torch.log10(links.mean_gain(config) / links.large_scale_gain).flatten()
    angle = torch.linspace(0, 2 * math.pi, 401)[:-1]
    # The site stands at the centre, so its first sector looks along the first axis.
    off_boresight = (angle - (angle / (2 * math.pi / 3)).round() * 2 * math.pi / 3).abs()
    ahead = gain_db[is_los & (off_boresight < math.radians(15))]
    edge = gain_db[is_los & (off_boresight > math.radians(50))]
    assert 5.5 < float(ahead.median()) < 8.5
    assert -3.0 < float(edge.median()) < 3.0


def test_indoor_devices_have_no_line_of_sight_and_lose_more():
    outdoor, indoor = (
        build_world(TINY.model_copy(update={"num_devices": 12, "indoor_share": share}), (0, 0))
        for share in (0.0, 1.0)
    )
    assert not indoor.is_los.any()
    assert indoor.gain_db.astype(float).mean() < outdoor.gain_db.astype(float).mean() - 8


@pytest.mark.parametrize(
    ("toward", "sector_rad"), [((1.0, 0.3), 0.0), ((-0.4, 1.0), 2 * math.pi / 3)]
)
def test_the_coherent_sum_is_sionnas(toward, sector_rad):
    """Given the same rays, Sionna's generator for any arrays agrees to the rounding of phases."""
    config = BankConfig(num_devices=5, num_servers=1, num_slots=4)
    start = 70.0 * np.array(toward) / np.hypot(*toward)
    velocity = np.tile([3.0, -1.0], (4, 5, 1))
    position = np.tile(start, (4, 5, 1)) + 0.5 * np.arange(4)[:, None, None] * velocity
    sionna_config.seed = 11
    links = draw_links(config, SITE_M, position, velocity, np.zeros(5, bool))
    assert links.is_los.any()
    assert not links.is_los.all()
    tones, step_s = torch.tensor([-2e6, 0.0, 1.5e6]), 0.003
    wavenumber = 2 * math.pi * 3.5e9 / 299_792_458.0
    got = links.frequency_response(tones, step_s * torch.arange(3), wavenumber)

    array = {"num_rows_per_panel": 1, "num_cols_per_panel": 1, "polarization": "single"}
    array |= {"polarization_type": "V", "carrier_frequency": 3.5e9, "device": "cpu"}
    generator = tr38901.ChannelCoefficientsGenerator(
        3.5e9,
        tr38901.PanelArray(antenna_pattern="38.901", **array),
        tr38901.PanelArray(antenna_pattern="omni", **array),
        subclustering=True,
        device="cpu",
    )
    topology = tr38901.Topology(
        velocities=links.velocity_m_s,
        moving_end="rx",
        los_aoa=links.los_aoa,
        los_aod=links.los_aod,
        los_zoa=links.los_zoa,
        los_zod=links.los_zod,
        los=links.is_los,
        distance_3d=links.distance_m,
        tx_orientations=torch.tensor([sector_rad, 0.0, 0.0]).expand(5, 1, 3),
        rx_orientations=torch.zeros(5, 4, 3),
    )
    h, delay_s = generator(
        3, 1 / step_s, links.k_factor, links.rays, topology, links.cluster_delay_spread_s
    )
    h = h * links.large_scale_gain.sqrt()[..., None, None, None, None]
    # To Sionna's order: receivers before transmitters, antennas beside them.
    wanted = cir_to_ofdm_channel(
        tones, h.permute(0, 2, 4, 1, 5, 3, 6), delay_s.permute(0, 2, 1, 3), normalize=False
    )[:, :, 0, :, 0]  # (D, T, E, S, F)
    wanted = wanted.permute(0, 2, 1, 4, 3)
    error = (got - wanted).abs() / links.large_scale_gain.sqrt()[..., None, None]
    assert float(error.max()) < 5e-3


def test_no_worker_at_all_and_no_sionna_are_refused(monkeypatch):
    with pytest.raises(UserError, match="workers is 0"):
        build_bank(TINY, workers=0)

    def missing(name):
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UserError, match="needs Sionna"):
        build_bank(TINY, workers=1)
